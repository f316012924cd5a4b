"""Models that no file names: their inputs as the pipeline gives them, and what is refused in one sentence."""

from __future__ import annotations

import json
from types import SimpleNamespace

import diffusers
import pytest
import torch

from svdq_trt.base.errors import ArtifactError, UnsupportedError
from svdq_trt.checkpoint.folder import open_folder
from svdq_trt.models import get_model
from svdq_trt.models.denoiser import Denoiser
from svdq_trt.runtime import attach
from tests.harness.foreign import asked, denoiser, pipeline, save, save_config
from tests.harness.published import publish, random_module

#: class -> axes of its inputs, and the step of height and width
FOUND = {
    "ChromaTransformer2DModel": (
        {
            "hidden_states": ("batch", "height_width", ""),
            "encoder_hidden_states": ("batch", "tokens", ""),
            "timestep": ("batch",),
            "img_ids": ("height_width", ""),
            "txt_ids": ("tokens", ""),
            "attention_mask": ("batch", "height_width_tokens"),
        },
        16,
    ),
    "CogView4Transformer2DModel": (
        {
            "hidden_states": ("batch", "", "2*height", "2*width"),
            "encoder_hidden_states": ("batch", "tokens", ""),
            "timestep": ("batch",),
            "original_size": ("batch", ""),
            "target_size": ("batch", ""),
            "crop_coords": ("batch", ""),
        },
        16,
    ),
    "ErnieImageTransformer2DModel": (
        {
            "hidden_states": ("batch", "", "height", "width"),
            "timestep": ("batch",),
            "text_bth": ("batch", "tokens", ""),
            "text_lens": ("batch",),
        },
        16,
    ),
}
#: class -> what is said of it
REFUSED = {
    "HunyuanImageTransformer2DModel": r"cannot run without values, as in transformer_hunyuanimage\.py, 'text_2\[",
    "Lumina2Transformer2DModel": r"cannot run without values, as in transformer_lumina2\.py, '.*\.tolist\(\)'",
    "HiDreamImageTransformer2DModel": "HiDreamImagePipeline: cannot run on prompt embeddings",
    "LongCatImageTransformer2DModel": "LongCatImagePipeline: cannot run on prompt embeddings",
    "Ideogram4Transformer2DModel": "Ideogram4Pipeline: takes no prompt embeddings",
}


@pytest.mark.parametrize("name", FOUND)
def test_inputs_and_their_axes_are_those_of_the_pipelines_calls(name, tmp_path):
    spec = open_folder(save(name, tmp_path / "some-model"), {})
    assert ({io.name: io.axes for io in spec.inputs}, spec.pixel_multiple) == FOUND[name]
    assert spec.name == "some-model" and get_model(spec.source) is spec and json.loads(spec.source)
    sizes = {"batch": 2, "height": 96, "width": 160, "tokens": 20}
    example = spec.example_inputs(**sizes)
    assert [tuple(t.shape) for t in example] == [io.shape(spec.profile.sizes(1) | sizes) for io in spec.inputs]
    assert [t.dtype for t in example] == [io.torch_dtype(torch.bfloat16) for io in spec.inputs]


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_traced_is_said_in_one_sentence(name, tmp_path):
    with pytest.raises(UnsupportedError, match=REFUSED[name]) as refused:
        open_folder(save(name, tmp_path / "a"), {})
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("BriaTransformer2DModel", "'NoneType' object has no attribute 'config'.*want the folder of a whole pipeline"),
        ("HunyuanDiT2DModel", "it reads 'inner_dim' of the denoiser, which is not in its config.json"),
        ("UNet2DConditionModel", "a UNet, which each pipeline calls otherwise, want a folder of a whole pipeline"),
    ],
)
def test_a_denoiser_alone_that_needs_its_pipeline_is_refused_with_that_remedy(name, text, tmp_path):
    with pytest.raises(UnsupportedError, match=text):
        open_folder(save_config(name, tmp_path), {})


def test_a_denoiser_alone_has_the_scheduler_that_its_pipeline_asks_for(tmp_path):
    """Its timesteps are whole numbers, as another's need not be."""
    spec = open_folder(save_config("PixArtTransformer2DModel", tmp_path), {})
    assert {io.name: io.dtype for io in spec.inputs}["timestep"] == "float32"
    assert json.loads(spec.source)["parts"]["parts"] == {"scheduler": ["DPMSolverMultistepScheduler", {}]}


def test_a_schedulers_infinite_defaults_are_no_damage(tmp_path):
    folder = save("PixArtTransformer2DModel", tmp_path / "a")
    diffusers.DPMSolverMultistepScheduler(solver_order=1).save_pretrained(folder / "scheduler")
    assert "-Infinity" in (folder / "scheduler" / "scheduler_config.json").read_text()
    name, config = json.loads(open_folder(folder, {}).source)["parts"]["parts"]["scheduler"]
    assert name == "DPMSolverMultistepScheduler" and config["solver_order"] == 1


def test_frames_are_found_by_any_name_that_pipelines_have_for_them(tmp_path):
    spec = open_folder(save_config("SanaVideoTransformer3DModel", tmp_path), {})
    assert {io.name: io.axes for io in spec.inputs}["hidden_states"][2] == "frames"
    assert spec.profile.frames == (81, 81, 81)


@torch.inference_mode()
@pytest.mark.parametrize("name", FOUND)
def test_the_pipeline_on_the_flat_module_makes_what_it_makes_on_its_own(name, tmp_path, monkeypatch):
    """Its calls become inputs, and inputs become the same calls; no complex number or f64 is needed for that."""
    spec = open_folder(save(name, tmp_path / "a"), {})
    monkeypatch.setattr(Denoiser, "dtype", torch.float32)  # pipelines ask for it
    flat = spec.wrap(random_module(spec, 0))
    runner = SimpleNamespace(
        model=spec.source,
        inputs=[SimpleNamespace(name=io.name, dtype=str(io.torch_dtype(torch.float32))[6:]) for io in spec.inputs],
        run=lambda feed: spec.run(flat, [feed[io.name] for io in spec.inputs]),
    )
    own = pipeline(name, random_module(spec, 0))
    call = asked(own, "prompt_embeds", "negative_prompt_embeds", num_inference_steps=2)
    want, got = (
        pipe(**call, generator=torch.Generator().manual_seed(1)).images
        for pipe in (own, attach(pipeline(name, denoiser(name)), runner))
    )
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)


def test_a_folder_of_a_named_model_is_that_model(tmp_path):
    spec = get_model("flux1-tiny")
    assert open_folder(publish(random_module(spec, 0), tmp_path, torch.bfloat16), {}) is spec


@pytest.mark.parametrize(
    ("config", "kind", "text"),
    [
        ({"_class_name": "os"}, UnsupportedError, "_class_name: 'os', want a class of diffusers"),
        ({"_class_name": "../x"}, UnsupportedError, "want a class of diffusers"),
        ({"_class_name": "FlowMatchEulerDiscreteScheduler"}, ArtifactError, "want a denoiser's class"),
        ({"_class_name": "AutoencoderKL"}, UnsupportedError, "AutoencoderKL: no pipeline in diffusers has it"),
        (None, ArtifactError, "neither model_index.json nor config.json, want a diffusers folder"),
    ],
)
def test_folders_of_something_else_are_refused(config, kind, text, tmp_path):
    if config is not None:
        (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(kind, match=text):
        open_folder(tmp_path, {})
