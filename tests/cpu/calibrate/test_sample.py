"""Inputs recorded in diffusers pipelines, small and with random weights: what is kept, what is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open

from svdq_trt.artifact.prompts import Prompt, check_pictures, read_prompts
from svdq_trt.base.errors import ArtifactError, SvdqError, UsageError
from svdq_trt.calibrate import collect, sample
from svdq_trt.calibrate.inputs import InputFile
from svdq_trt.calibrate.sample import sample_inputs, schedule
from svdq_trt.checkpoint import load
from svdq_trt.models import get_model
from tests.harness.published import random_module
from tests.harness.tiny_pipelines import flux, picture, qwen, random, sd3_parts, sdxl_parts, z_image

pytest.importorskip("transformers", reason="transformers is not installed: the text encoders come from it")
SIZE = {"height": 64, "width": 128}
PROMPTS = [Prompt("a fox"), Prompt("two owls"), Prompt("the sea")]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Model -> the folder of a whole pipeline."""
    from diffusers import StableDiffusion3Pipeline, StableDiffusionXLPipeline

    made, words = {}, tmp_path_factory.mktemp("words")
    kinds = {
        "sdxl-tiny": ("unet", StableDiffusionXLPipeline, sdxl_parts, {"add_watermarker": False}),
        "sd3-tiny": ("transformer", StableDiffusion3Pipeline, sd3_parts, {}),
    }
    for name, (component, pipeline, parts, more) in kinds.items():
        spec = get_model(name)
        torch.manual_seed(1)
        denoiser = spec.model_class()(**spec.config).to(spec.torch_dtype)
        made[name] = tmp_path_factory.mktemp(name)
        pipeline(**{component: denoiser}, **parts(words), **more).save_pretrained(made[name])
    return made


def sampled(folders, name, out, **changes):
    asked = {"samples": 4, "steps": 4, "guidance": 5.0, "seed": 3} | SIZE | changes
    count = sample_inputs(get_model(name), folders[name], PROMPTS, out, **asked)
    with safe_open(out, framework="pt") as file:
        note = json.loads(file.metadata()["svdq.sampling"])
        return count, {key: file.get_tensor(key) for key in file.keys()}, note  # noqa: SIM118 - not a dict


@pytest.mark.parametrize("name", ["sdxl-tiny", "sd3-tiny"])
def test_file_has_both_branches_of_evenly_spread_steps_and_calibrates(folders, name, tmp_path):
    spec, out = get_model(name), tmp_path / "inputs.safetensors"
    count, tensors, note = sampled(folders, name, out)
    assert count == 8 and (note["steps"], note["samples"], note["prompts"]) == (4, 4, 3)
    assert len(set(tensors["timestep"].tolist())) == 4
    for first in range(0, 8, 2):  # without and with the prompt, from the same latent at the same step
        latent, text = tensors[spec.inputs[0].name], tensors["encoder_hidden_states"]
        assert torch.equal(latent[first], latent[first + 1]) and not torch.equal(text[first], text[first + 1])
        assert tensors["timestep"][first] == tensors["timestep"][first + 1]
    assert tensors["encoder_hidden_states"].dtype == spec.torch_dtype
    assert InputFile(spec, out).groups[0].sizes.items() >= {"batch": 8, "height": 64, "width": 128}.items()
    module = load(spec, random_seed=0)
    groups = spec.groups(module)[:2]
    assert collect(module, spec, groups, data=out, tokens_per_group=16).meta["samples"] == 8


def test_inputs_are_those_of_the_pipelines_own_run(folders, tmp_path):
    from diffusers import StableDiffusionXLPipeline

    _, tensors, _ = sampled(folders, "sdxl-tiny", tmp_path / "a.safetensors", samples=1, steps=2)
    pipe = StableDiffusionXLPipeline.from_pretrained(folders["sdxl-tiny"], dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    seen = []
    pipe.unet.register_forward_pre_hook(lambda m, args, kw: seen.append((args, kw)), with_kwargs=True)
    pipe(
        PROMPTS[0].text,
        generator=torch.Generator().manual_seed(3),
        num_inference_steps=2,
        guidance_scale=5.0,
        output_type="latent",
        **SIZE,
    )
    args, kwargs = seen[0]
    torch.testing.assert_close(tensors["sample"].float(), args[0], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(
        tensors["encoder_hidden_states"].float(), kwargs["encoder_hidden_states"], rtol=1e-3, atol=1e-3
    )
    assert torch.equal(tensors["time_ids"], kwargs["added_cond_kwargs"]["time_ids"].float())


def test_equal_seeds_repeat_and_no_guidance_gives_one_branch(folders, tmp_path):
    one, two, other = (
        sampled(folders, "sdxl-tiny", tmp_path / f"{i}", guidance=1.0, seed=seed) for i, seed in enumerate((3, 3, 4))
    )
    assert one[0] == 4 and all(torch.equal(one[1][key], two[1][key]) for key in one[1])
    assert not torch.equal(one[1]["sample"], other[1]["sample"])


def test_prompts_of_their_own_length_calibrate_together(folders, tmp_path, monkeypatch):
    """As the pipelines of models without padding give them: here text is cut to the prompt."""
    from diffusers import StableDiffusion3Pipeline

    encode = StableDiffusion3Pipeline.encode_prompt

    def cut(pipe, prompt, *args, **kwargs):
        *texts, pooled, other_pooled = encode(pipe, prompt, *args, **kwargs)
        return *(text[:, : len(prompt)] for text in texts), pooled, other_pooled

    monkeypatch.setattr(StableDiffusion3Pipeline, "encode_prompt", cut)
    spec, out = get_model("sd3-tiny"), tmp_path / "inputs.safetensors"
    count, tensors, _ = sampled(folders, "sd3-tiny", out)
    assert count == 8 and set(tensors) == {f"{i}.{io.name}" for i in range(3) for io in spec.inputs}
    file = InputFile(spec, out)
    assert [group.sizes["tokens"] for group in file.groups] == [len(prompt.text) for prompt in PROMPTS]
    assert [len(group) for group in file.groups] == [4, 2, 2] and file.samples == 8
    module = load(spec, random_seed=0)
    assert collect(module, spec, spec.groups(module)[:2], data=out, tokens_per_group=16).meta["samples"] == 8


def flux_text(pipe, prompt, **_):
    text = random(1, 16, 96, seed=len(prompt))
    return text, random(1, 48, seed=len(prompt)), torch.zeros(16, 3)


def qwen_text(pipe, prompt, **_):
    return random(1, 3 * len(prompt), 96, seed=len(prompt)), None


def z_text(pipe, prompt, do_classifier_free_guidance, **_):
    text = [random(5 * len(prompt), 96, seed=len(prompt))]
    return text, [random(7, 96)] if do_classifier_free_guidance else []


#: model -> its pipeline, its text encoder's stand-in, the inputs recorded of one step, tokens of each prompt's text
OTHERS = {
    "flux1-kontext-tiny": ("FluxKontextPipeline", flux, flux_text, 1, {16}),
    "flux1-fill-tiny": ("FluxFillPipeline", flux, flux_text, 1, {16}),
    "flux1-control-tiny": ("FluxControlPipeline", flux, flux_text, 1, {16}),
    "qwen-image-tiny": ("QwenImagePipeline", qwen, qwen_text, 2, {15, 21, 24, 3}),
    "qwen-image-edit-tiny": ("QwenImageEditPlusPipeline", qwen, qwen_text, 2, {15, 21, 24, 3}),
    "z-image-tiny": ("ZImagePipeline", lambda _, transformer: z_image(transformer), z_text, 2, {32, 64}),
}


@pytest.mark.parametrize("name", OTHERS)
def test_pictures_and_text_of_any_length_are_recorded_and_calibrate(name, tmp_path, monkeypatch):
    kind, make, encode, branches, tokens = OTHERS[name]
    spec, out = get_model(name), tmp_path / "inputs.safetensors"
    pipe = make(kind, random_module(spec, 3))
    pipe.set_progress_bar_config(disable=True)
    monkeypatch.setattr(type(pipe), "encode_prompt", encode)
    monkeypatch.setattr(sample, "_load", lambda *_: pipe)
    for size in ("VAE_IMAGE_SIZE", "CONDITION_IMAGE_SIZE"):
        monkeypatch.setattr(f"diffusers.pipelines.qwenimage.pipeline_qwenimage_edit_plus.{size}", 64 * 128)
    for argument in spec.pictures:
        picture(64, 128, mask="mask" in argument).save(tmp_path / f"{argument}.png")
    (tmp_path / "p").write_text(
        "".join("\t".join([p.text, *(f"{a}.png" for a in spec.pictures)]) + "\n" for p in PROMPTS)
    )
    prompts = read_prompts(tmp_path / "p")
    check_pictures(tmp_path / "p", prompts, spec.pictures)
    count = sample_inputs(spec, tmp_path, prompts, out, samples=3, steps=3, guidance=4.0, **SIZE)
    file = InputFile(spec, out)
    assert count == file.samples == 3 * branches
    assert {group.sizes["tokens"] for group in file.groups} == tokens
    module = load(spec, random_seed=0)
    assert collect(module, spec, spec.groups(module)[:2], data=out, tokens_per_group=16).meta["samples"] == count


def test_progress_ends_at_the_steps_that_are_run(folders, tmp_path):
    calls = []
    sample_inputs(
        get_model("sdxl-tiny"),
        folders["sdxl-tiny"],
        PROMPTS,
        tmp_path / "a",
        samples=2,
        steps=4,
        progress=lambda *event: calls.append(event),
        **SIZE,
    )
    # steps 0 and 2 are kept: a prompt's run ends after its step, so 1 + 3 steps are run
    assert calls[0][2].startswith("loading ") and [c[:2] for c in calls[1:]] == [(1, 4), (2, 4), (3, 4), (4, 4)]


@pytest.mark.parametrize("samples,prompts,steps", [(1, 5, 20), (16, 3, 20), (16, 100, 20), (7, 2, 4), (8, 2, 4)])
def test_schedule_spreads_over_steps_and_prompts(samples, prompts, steps):
    chosen = schedule(samples, prompts, steps)
    assert sum(len(wanted) for wanted in chosen.values()) == samples
    assert len(chosen) == min(samples, prompts) and max(chosen) < prompts
    counts = [len(wanted) for wanted in chosen.values()]
    assert max(counts) - min(counts) <= 1
    kept = sorted(step for wanted in chosen.values() for step in wanted)
    assert kept == sorted(i * steps // samples for i in range(samples))


@pytest.mark.parametrize("samples", [0, 9])
def test_more_samples_than_steps_are_refused(samples):
    with pytest.raises(UsageError, match=f"{samples}, want 1 to 8: 2 prompts of 4 steps"):
        schedule(samples, 2, 4)


def test_pipeline_of_another_model_is_refused(folders, tmp_path):
    with pytest.raises(SvdqError, match="no unet among its components, want a diffusers pipeline of sdxl-tiny"):
        sample_inputs(get_model("sdxl-tiny"), folders["sd3-tiny"], PROMPTS, tmp_path / "a", samples=1, steps=2, **SIZE)
    with pytest.raises(SvdqError, match="for sdxl"):  # the class fits, the sizes do not
        sample_inputs(get_model("sdxl"), folders["sdxl-tiny"], PROMPTS, tmp_path / "a", samples=1, steps=2, **SIZE)
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(("plain", "variant"), [(True, None), (False, "fp16")])
def test_the_pipeline_runs_the_weights_that_the_build_reads(tmp_path, monkeypatch, plain, variant):
    """The variant's files beside the plain ones are no reason to run them."""
    from diffusers import DiffusionPipeline

    stem, asked = "diffusion_pytorch_model", []
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text("{}")
    (tmp_path / "model_index.json").write_text("{}")
    for name in [f"{stem}.fp16.safetensors", f"{stem}.safetensors"][: 1 + plain]:
        (tmp_path / "unet" / name).write_bytes(b"")

    def load(folder, **options):
        asked.append(options["variant"])
        raise ValueError("seen")

    monkeypatch.setattr(DiffusionPipeline, "from_pretrained", load)
    with pytest.raises(ArtifactError, match="seen"):
        sample_inputs(get_model("sdxl-tiny"), tmp_path, PROMPTS, tmp_path / "a", samples=1, steps=2, **SIZE)
    assert asked == [variant]


def test_damaged_pipeline_is_refused(tmp_path):
    kind = '"_class_name": "StableDiffusionXLPipeline"'
    for content, text in (
        ("{", "not valid JSON"),
        ('{"_class_name": "NoSuchPipeline"}', "cannot be loaded"),
        ('{"_class_name": ["StableDiffusionXLPipeline"]}', "cannot be loaded"),
        ('{"_class_name": null}', "cannot be loaded"),
        ("{" + kind + ', "unet": [1, 2]}', "cannot be loaded"),
        ("{" + kind + ', "unet": {"a": 1}, "vae": "x"}', "cannot be loaded"),
        ("{" + kind + ', "unet": ["diffusers"], "_diffusers_version": 3}', "cannot be loaded"),
        ("{" + kind + ', "unet": ["os", "system"]}', "cannot be loaded"),
    ):
        (tmp_path / "model_index.json").write_text(content)
        with pytest.raises(ArtifactError, match=text):
            sample_inputs(get_model("sdxl-tiny"), tmp_path, PROMPTS, tmp_path / "a", samples=1, steps=2, **SIZE)


@pytest.mark.parametrize("content,text", [(b"\n \n", "no prompt"), (b"\xff\xfe", "UTF-8"), (None, "cannot be read")])
def test_unusable_prompts_are_refused(content, text, tmp_path):
    path = tmp_path / "prompts.txt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ArtifactError, match=text):
        read_prompts(path)


def test_prompts_are_the_lines_that_are_not_empty(tmp_path):
    (tmp_path / "p").write_text("a fox\n\n  two owls \n")
    assert read_prompts(tmp_path / "p") == [Prompt("a fox"), Prompt("two owls")]


def test_pictures_of_a_prompt_are_behind_tabs(tmp_path):
    (tmp_path / "p").write_text("a fox\ta.png\t m.png\n")
    (tmp_path / "a.png").write_bytes(b"")
    prompts = read_prompts(tmp_path / "p")
    assert prompts == [Prompt("a fox", (tmp_path / "a.png", tmp_path / "m.png"))]
    with pytest.raises(ArtifactError, match=r"p: 'a fox': '.*m\.png': no such file, want the file of a picture"):
        check_pictures(tmp_path / "p", prompts, ("image", "mask_image"))
    with pytest.raises(ArtifactError, match="2 files of pictures, want 1: image, each behind a tab"):
        check_pictures(tmp_path / "p", prompts, ("image",))
    with pytest.raises(ArtifactError, match="2 files of pictures, want none"):
        check_pictures(tmp_path / "p", prompts, ())
