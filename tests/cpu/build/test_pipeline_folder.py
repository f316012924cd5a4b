"""A diffusers pipeline's folder before --pipeline begins any work, and pipeline.json that does not fit."""

from __future__ import annotations

import json
import shutil
import threading
from types import SimpleNamespace

import pytest
import torch

from svdq_trt.artifact import pipeline_file
from svdq_trt.base.errors import ArtifactError, SvdqError, UnsupportedError, UsageError
from svdq_trt.build import run
from svdq_trt.build.config import BuildConfig
from svdq_trt.build.pipeline_work import _part_sizes
from svdq_trt.build.sizes import Sizes
from svdq_trt.build.ui import Screen
from svdq_trt.build.work import plan_work
from svdq_trt.checkpoint.parts import check_part
from svdq_trt.models import get_model
from svdq_trt.models.parts import Part
from svdq_trt.models.pipelines import KINDS, PipelineFolder
from tests.harness import tiny_encoders
from tests.harness.language_models import GEMMA2, MISTRAL3, QWEN3
from tests.harness.manifests import write_manifest
from tests.harness.tiny_pipelines import deep_compression, vae_levels

pytest.importorskip("transformers", reason="transformers is not installed: text encoders are its classes")
INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
    "tokenizer_2": ["transformers", "CLIPTokenizer"],
    "image_encoder": [None, None],
    "force_zeros_for_empty_prompt": True,
}


@pytest.fixture
def folder(tmp_path):
    """A pipeline of sdxl-tiny without weights."""

    def write(component, name, content):
        (tmp_path / component).mkdir(exist_ok=True)
        (tmp_path / component / name).write_text(json.dumps(content))

    (tmp_path / "model_index.json").write_text(json.dumps(INDEX))
    unet = {"_class_name": "UNet2DConditionModel", **get_model("sdxl-tiny").config}
    text = {"hidden_size": 64, "num_attention_heads": 2, "projection_dim": 64}
    vae = vae_levels(4)
    for component, config in (("unet", unet), ("vae", vae), ("text_encoder", text), ("text_encoder_2", text)):
        write(component, "config.json", config)
    write("scheduler", "scheduler_config.json", {})
    for component in ("tokenizer", "tokenizer_2"):
        write(component, "tokenizer_config.json", {"model_max_length": 77})
        tiny_encoders.tokenizer(tmp_path / component)
    return tmp_path


def work(folder, seed=0, **options):
    options = {"check": False, "preset": "fast", "pipeline": folder} | options
    config = BuildConfig("sdxl-tiny", (89,), folder / "out", random_weights=seed, **options)
    return plan_work(config).pipeline


def test_an_engine_takes_a_picture_up_to_a_tile():
    part = Part("vae", "decoder", "AutoencoderKLFlux2", {"block_out_channels": [32] * 4}, "bfloat16", 16)
    sides = {"height": (512, 1024, 2048), "width": (1024, 1536, 2048)}
    sizes = _part_sizes(part, Sizes(sides | {"batch": (1, 1, 2), "tokens": (16, 16, 16)}), 1024)
    (latent,) = sizes.tensors(part.inputs, torch.bfloat16)
    assert (latent.min, latent.opt, latent.max) == ((1, 32, 64, 128), (1, 32, 128, 128), (1, 32, 128, 128))


def test_parts_of_a_folder(folder):
    found = work(folder)
    parts = {one.part.name: one for one in found.parts}
    assert [*parts] == ["vae_decoder", "vae_encoder", "text_encoder", "text_encoder_2"]
    assert {name: one.part.act_dtype for name, one in parts.items()} == {
        "vae_decoder": "float32",  # its class's default is force_upcast
        "vae_encoder": "float32",
        "text_encoder": "float16",
        "text_encoder_2": "float16",
    }
    assert [t.max for t in parts["vae_decoder"].inputs()] == [(1, 4, 32, 32)]
    assert [t.max for t in parts["text_encoder"].inputs()] == [(1, 77)], "texts one by one"
    tiles = {one.part.name: one.inputs()[0] for one in work(folder, vae_tile=128).parts}["vae_encoder"]
    assert (tiles.min, tiles.opt, tiles.max) == ((1, 3, 64, 64), (1, 3, 128, 128), (1, 3, 128, 128))
    with pytest.raises(UsageError, match="--vae-tile: 100, want a multiple of 64"):
        work(folder, vae_tile=100)
    with pytest.raises(UsageError, match="--vae-tile: given alone, want --pipeline with it"):
        work(folder, vae_tile=128, pipeline=None)
    assert set(found.files) == {
        "model_index.json",
        "vae/config.json",
        "text_encoder/config.json",
        "text_encoder_2/config.json",
        "scheduler/scheduler_config.json",
        *(f"tokenizer{i}/{file}.json" for i in ("", "_2") for file in ("vocab", "tokenizer_config")),
        *(f"tokenizer{i}/merges.txt" for i in ("", "_2")),
    }
    assert PipelineFolder.read(folder).settings == {"force_zeros_for_empty_prompt": True}
    assert len({one.identity.digest for one in (*found.parts, *work(folder, seed=1).parts)}) == 6  # both halves share


def test_a_tokenizer_that_counts_an_instruction(tmp_path):
    index = {"_class_name": "SanaPipeline", "transformer": ["diffusers", "SanaTransformer2DModel"]}
    index |= {"text_encoder": ["transformers", "Gemma2Model"]}
    index |= {"vae": ["diffusers", "AutoencoderDC"], "scheduler": ["diffusers", "DPMSolverMultistepScheduler"]}
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"tokenizer": [None, None]}))
    with pytest.raises(ArtifactError, match="no tokenizer, want the components of a SanaPipeline"):
        PipelineFolder.read(tmp_path)
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"tokenizer": ["transformers", "GemmaTokenizer"]}))
    for name, file in (("tokenizer", "tokenizer.json"), ("scheduler", "scheduler_config.json")):
        (tmp_path / name).mkdir()
        (tmp_path / name / file).write_text("{}")
    with pytest.raises(ArtifactError, match=r"tokenizer: cannot be loaded \(.*\), want a GemmaTokenizer"):
        PipelineFolder.read(tmp_path).parts("bfloat16", 300)


@pytest.mark.parametrize(
    "change,text",
    [
        ({"_class_name": "StableDiffusionXLInpaintPipeline"}, "a StableDiffusionXLInpaintPipeline, want one of Stable"),
        ({"_class_name": None}, "a None, want one of"),
        ({"_class_name": "SanaSprintPipeline"}, "a SanaSprintPipeline, want one of"),
        ({"_class_name": "SanaControlNetPipeline"}, "a SanaControlNetPipeline, want one of"),
        ({"_class_name": "SanaPAGPipeline"}, "a SanaPAGPipeline, want one of"),
        ({"_class_name": "QwenImageEditPlusPipeline"}, "a QwenImageEditPlusPipeline, want one of"),
        ({"_class_name": "QwenImageControlNetPipeline"}, "a QwenImageControlNetPipeline, want one of"),
        ({"text_encoder": ["transformers", "LlamaModel"]}, "text_encoder: a LlamaModel, want one of CLIPTextModel"),
        (
            {"vae": ["diffusers", "AutoencoderDC"]},
            "vae: a AutoencoderDC, want the AutoencoderKL of a Stable",
        ),
        ({"text_encoder": ["transformers", "Gemma2Model"]}, "text_encoder: a Gemma2Model, want the CLIPTextModel of"),
        ({"text_encoder_2": [None, None]}, "no text_encoder_2, want the components of a StableDiffusionXLPipeline"),
        ({"tokenizer": [None, None]}, "no tokenizer, want the components of a StableDiffusionXLPipeline"),
        ({"tokenizer": ["transformers", "T5TokenizerFast"]}, "tokenizer: a T5TokenizerFast, want the CLIPTokenizer of"),
        ({"vae": ["transformers", "CLIPTokenizer"]}, "vae: a CLIPTokenizer, want the AutoencoderKL of a Stable"),
        ({"scheduler": ["transformers", "CLIPTokenizer"]}, "scheduler: a CLIPTokenizer, want the KarrasDiffusion"),
        ({"image_encoder": ["transformers", "CLIPVisionModel"]}, "image_encoder: a CLIPVisionModel, want one of"),
        ({"scheduler": ["diffusers", "DiffusionPipeline"]}, "scheduler: a DiffusionPipeline, want one of"),
        ({"scheduler": ["diffusers", "NoSuchScheduler"]}, "no diffusers.NoSuchScheduler"),
        ({"unet": ["diffusers", "UNet2DModel"]}, "unet is .* want a UNet2DConditionModel"),
        ({"vae": [None, None]}, "no vae, want the components of a StableDiffusionXLPipeline"),
        ({"vae": ["transformers", "CLIPTextModel"]}, "vae: a CLIPTextModel, want the AutoencoderKL of a Stable"),
        ({"../x": ["transformers", "CLIPTextModel"]}, "an unknown ../x, want the components of a"),
    ],
)
def test_another_pipeline_is_refused_before_any_work(change, text, folder):
    (folder / "model_index.json").write_text(json.dumps(INDEX | change))
    with pytest.raises(SvdqError, match=text):
        work(folder)


def test_what_is_missing_is_refused_before_any_work(folder):
    with pytest.raises(ArtifactError, match="unet: no weights"):
        plan_work(BuildConfig("sdxl-tiny", (89,), folder / "out", checkpoint=str(folder), check=False, pipeline=folder))
    text = folder / "text_encoder" / "config.json"
    whole = text.read_text()
    text.write_text(json.dumps({"hidden_size": "many"}))
    with pytest.raises(ArtifactError, match=r"text_encoder/config\.json: .*, want the config of a CLIPTextModel"):
        work(folder)
    text.write_text(json.dumps({"quantization_config": {"quant_method": "fp8"}}))
    with pytest.raises(SvdqError, match="quantized by 'fp8', want an unquantized checkpoint"):
        work(folder)
    text.write_text(whole)
    scheduler = folder / "scheduler" / "scheduler_config.json"
    scheduler.write_text("[")
    with pytest.raises(ArtifactError, match=r"scheduler: cannot be loaded \(.*\), want a EulerDiscreteScheduler"):
        work(folder)
    scheduler.write_text("{}")
    words = folder / "tokenizer"
    shutil.move(words, folder / "kept")
    with pytest.raises(ArtifactError, match="tokenizer: no files, want those of a CLIPTokenizer"):
        work(folder)
    words.mkdir()
    (words / "tokenizer_config.json").write_text("{}")
    with pytest.raises(ArtifactError, match="tokenizer: no words, want the vocabulary of a CLIPTokenizer"):
        work(folder)


def flux2_tokenizer(tmp_path, **settings):
    """The folder of FLUX.2's tokenizer, with other settings; what reads it."""
    words = tmp_path / "tokenizer"
    words.mkdir()
    tiny_encoders.mistral_tokenizer(words)
    file = words / "tokenizer_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | settings))
    return words, lambda: PipelineFolder(tmp_path, KINDS["Flux2Pipeline"], {"tokenizer": "PixtralProcessor"}, {}).files


def test_a_tokenizer_that_has_nothing_to_pad_with(tmp_path):
    _, files = flux2_tokenizer(tmp_path, pad_token=None)
    with pytest.raises(ArtifactError, match="tokenizer: no token for padding, want the pad_token of a Flux2Pipeline"):
        files()


@pytest.mark.parametrize("name", ["chat_template.json", "processor_config.json"])
def test_a_chat_template_that_only_a_processor_reads(name, tmp_path):
    words, files = flux2_tokenizer(tmp_path)
    template = (words / "chat_template.jinja").read_text()
    (words / "chat_template.jinja").unlink()
    (words / name).write_text("{}")
    with pytest.raises(ArtifactError, match="tokenizer: no chat template, want that of a Flux2Pipeline"):
        files()
    (words / name).write_text(json.dumps({"chat_template": [template]}))
    with pytest.raises(ArtifactError, match=rf"{name}: a chat_template of type list, want a text"):
        files()
    (words / name).write_text(json.dumps({"chat_template": template}))
    assert files()["tokenizer"].chat_template == template
    (words / "chat_template.jinja").write_text("another, which a processor reads last")
    assert files()["tokenizer"].chat_template == template


def test_an_encoder_that_may_be_absent(tmp_path):
    index = {"_class_name": "StableDiffusion3Pipeline", "transformer": ["diffusers", "SD3Transformer2DModel"]}
    index |= {"vae": ["diffusers", "AutoencoderKL"], "scheduler": ["diffusers", "FlowMatchEulerDiscreteScheduler"]}
    for i in ("", "_2"):
        index[f"text_encoder{i}"] = ["transformers", "CLIPTextModelWithProjection"]
        index[f"tokenizer{i}"] = ["transformers", "CLIPTokenizer"]
    (tmp_path / "model_index.json").write_text(json.dumps(index))
    assert len(PipelineFolder.read(tmp_path).part_names()) == 4
    (tmp_path / "model_index.json").write_text(json.dumps(index | {"tokenizer_3": ["transformers", "T5TokenizerFast"]}))
    with pytest.raises(ArtifactError, match="no text_encoder_3, want the components of a StableDiffusion3Pipeline"):
        PipelineFolder.read(tmp_path)


@pytest.mark.parametrize(
    "class_name,config,text",
    [
        ("Gemma2Model", GEMMA2 | {"sliding_window": None}, "not supported between"),
        ("Qwen3Model", QWEN3 | {"layer_types": ["full_attention", "full_attention", "linear_attention"]}, "linear_att"),
        ("Qwen3ForCausalLM", QWEN3 | {"num_key_value_heads": 3}, "size of tensor a"),
        (
            "Mistral3ForConditionalGeneration",
            MISTRAL3 | {"text_config": {"model_type": "ministral3", **QWEN3}},
            "a text_config of type ministral3 instead of mistral",
        ),
        (
            "AutoencoderDC",
            deep_compression(6) | {"decoder_block_out_channels": [16, 32]},
            "image of .* in the place",
        ),
    ],
)
def test_a_part_that_is_built_and_does_not_run(class_name, config, text, tmp_path):
    part = Part("vae", "decoder" if "DC" in class_name else "", class_name, config, "bfloat16", 16)
    with pytest.raises(ArtifactError, match=f"config.json: .*{text}.*, want the config of a {class_name}"):
        check_part(part, tmp_path / "config.json", {"batch": 1, "height": 64, "width": 64})


def test_an_engine_alone_is_no_pipeline(tmp_path, capsys):
    from svdq_trt.cli import main

    write_manifest(tmp_path)
    assert main(["run", str(tmp_path), "--prompt", "a fox"]) == 1
    assert "an engine without pipeline.json, want the engines of a whole pipeline. Build it" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../x", "/etc/passwd", "a/../../x", ""])
def test_files_stay_in_the_folder(name, tmp_path):
    data = {"version": 1, "pipeline": "x", "engines": {}, "files": [{"file": name, "bytes": 1, "sha256": ""}]}
    (tmp_path / pipeline_file.NAME).write_text(json.dumps(data))
    with pytest.raises(ArtifactError, match="file "):
        pipeline_file.read(tmp_path)


@pytest.mark.parametrize(
    "words,text",
    [
        (["--size", "1024*768"], "--size: '1024.768', want WIDTHxHEIGHT"),
        (["--out", "fox.jpg"], "--out: 'fox.jpg', want a .png file"),
        (["--steps", "0"], "steps: 0, want at least 1"),
        (["--batch", "0"], "batch: 0, want at least 1"),
        (["--seed", "-1"], "seed: -1, want 0 to 2"),
        (["--guidance", "nan"], "guidance: nan, want a finite number"),
        (["--strength", "0.5"], "strength: given alone, want an image with it"),
        (["--image", "fox.png", "--strength", "2"], "strength: 2.0, want above 0, at most 1"),
    ],
)
def test_options_of_run_that_make_no_sense(words, text, tmp_path):
    from svdq_trt.cli import parse
    from svdq_trt.cli.run import run

    with pytest.raises(UsageError, match=text):
        run(parse(["run", str(tmp_path), "--prompt", "a fox", *words]))


@pytest.mark.parametrize("threshold,error", [("0.1", UnsupportedError), ("-1", UsageError), ("nan", UsageError)])
def test_a_step_cache_is_checked_before_an_engine_is_opened(threshold, error, tmp_path):
    from svdq_trt.cli import parse
    from svdq_trt.cli.run import run

    write_manifest(tmp_path)
    with pytest.raises(error, match="step_cache: "):
        run(parse(["run", str(tmp_path), "--prompt", "a fox", "--step-cache", threshold]))


@pytest.fixture
def started(folder, tmp_path, monkeypatch):
    """A build of the pipeline whose stages do nothing, on a machine with that much memory."""

    def start(gigabytes):
        memory = SimpleNamespace(available=gigabytes * 10**9)
        monkeypatch.setattr(run.psutil, "virtual_memory", lambda: memory)
        build = run.Build(BuildConfig("sdxl-tiny", (89,), tmp_path / "out", **options), Screen())
        monkeypatch.setattr(build, "_inputs", lambda: None)
        monkeypatch.setattr(build, "_engine", lambda *_: None)
        return build

    options = {"random_weights": 0, "check": False, "pipeline": folder}
    return start


def test_parts_are_exported_beside_the_denoisers_stages(started, monkeypatch):
    build, together = started(24), threading.Barrier(2)
    monkeypatch.setattr(build, "_graph", lambda *_: together.wait(timeout=60))
    monkeypatch.setattr(build.parts, "graphs", lambda: together.wait(timeout=60))
    build._run({})


def test_parts_are_exported_before_them_where_memory_is_short(started, monkeypatch):
    build, order = started(8), []
    monkeypatch.setattr(build, "_graph", lambda *_: order.append("denoiser"))
    monkeypatch.setattr(build.parts, "graphs", lambda: order.append("parts"))
    build._run({})
    assert order == ["parts", "denoiser"] and build.parts.room_bytes > 3 * 2 * 50_000


def test_a_part_that_fails_stops_the_denoisers_stages_and_is_reported(started, monkeypatch):
    build, stopped = started(24), threading.Event()

    def killed(*_):
        assert stopped.wait(timeout=60)
        raise SvdqError("quantize", "killed", "to go on")

    def fail():
        raise ArtifactError("text_encoder", "damaged", "whole")

    monkeypatch.setattr(build.runner, "stop", stopped.set)
    monkeypatch.setattr(build, "_graph", killed)
    monkeypatch.setattr(build.parts, "graphs", fail)
    with pytest.raises(ArtifactError, match=r"^text_encoder: damaged"):
        build._run({})


def test_streamed_parts_are_parts_of_the_pipeline(folder, tmp_path):
    options = {"random_weights": 0, "check": False, "streamed_parts": ("text_encoder_2",)}
    with pytest.raises(UsageError, match="--weight-streaming: 'text_encoder_2', a part, want --pipeline with it"):
        BuildConfig("sdxl-tiny", (89,), tmp_path / "out", **options)
    options |= {"pipeline": folder, "step_cache": True}
    config = BuildConfig("sdxl-tiny", (89,), tmp_path / "out", **options)
    assert not config.weight_streaming and config.of_part("text_encoder_2").weight_streaming
    assert not config.of_part("text_encoder").weight_streaming and not config.of_part("text_encoder_2").step_cache
    options |= {"step_cache": False, "streamed_parts": ("text_encoder_2", "vae")}
    want = "want one of vae_decoder, vae_encoder, text_encoder, text_encoder_2"
    with pytest.raises(UsageError, match=f"--weight-streaming: no part 'vae', {want}"):
        plan_work(BuildConfig("sdxl-tiny", (89,), tmp_path / "out", **options))
