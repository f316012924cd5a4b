"""T5's encoder as a model: what its engine weighs, and which encoders of pipelines it stands for."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from svdq_trt.artifact import manifest
from svdq_trt.base.errors import ArtifactError, UnsupportedError, UsageError
from svdq_trt.build.config import BuildConfig, Range
from svdq_trt.build.pipeline import _copied_engine
from svdq_trt.build.work import plan_work
from svdq_trt.checkpoint.config_check import check_config
from svdq_trt.checkpoint.locate import locate, locate_component
from svdq_trt.models import MODELS, get_model
from svdq_trt.models.packed import text_input
from tests.harness import tiny_pipelines
from tests.harness.manifests import file_entry, write_manifest
from tests.harness.recipes import weight_bytes

pytest.importorskip("transformers", reason="transformers is not installed: T5 is its class")
#: config.json as it lies in the folder of FLUX.1
PUBLISHED = {
    "architectures": ["T5EncoderModel"],
    "classifier_dropout": 0.0,
    "dense_act_fn": "gelu_new",
    "dropout_rate": 0.1,
    "is_gated_act": True,
    "model_type": "t5",
    "tie_word_embeddings": False,
    **get_model("t5-xxl").config,
}


@pytest.mark.parametrize("fmt,most", [("int4", 2.9e9), ("w4a8", 2.9e9), ("nvfp4", 3.0e9)])
def test_xxl_takes_a_third_of_its_16_bit_weights(fmt, most):
    total = weight_bytes(get_model("t5-xxl"), [fmt])[fmt]
    assert total < most, total


def test_another_activation_is_another_model(tmp_path):
    path = tmp_path / "config.json"
    for name in ("gated-silu", "relu"):
        path.write_text(json.dumps(PUBLISHED | {"feed_forward_proj": name}))
        with pytest.raises(ArtifactError, match=f"feed_forward_proj is '{name}', want 'gated-gelu' for t5-xxl"):
            check_config(get_model("t5-xxl"), path)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A pipeline of flux1-wide, which is flux1-tiny for text of T5 XXL, whose configuration is there."""
    tiny, out = get_model("flux1-tiny"), tmp_path / "flux"
    config = {**tiny.config, "joint_attention_dim": PUBLISHED["d_model"]}
    text = text_input(config)
    inputs = tuple(text if io.name == text.name else io for io in tiny.inputs)
    wide = replace(tiny, name="flux1-wide", config=config, inputs=inputs)
    monkeypatch.setitem(MODELS, wide.name, wide)
    tiny_pipelines.save("FluxPipeline", wide, tiny_pipelines.flux_parts(tmp_path), out)
    (out / "text_encoder_2" / "config.json").write_text(json.dumps(PUBLISHED))
    return out


def work(folder, model="flux1-wide"):
    config = BuildConfig(
        model, (89,), folder / "out", random_weights=0, check=False, rank=64, pipeline=folder, quantize_text=True
    )
    return plan_work(config).pipeline


def test_published_t5_is_a_build_of_its_own(folder):
    found = work(folder)
    (config,) = found.quantized.values()
    assert (*found.quantized, config.model, config.rank, config.check) == ("text_encoder_2", "t5-xxl", 64, False)
    assert (config.batch, config.tokens) == (Range(1, 1, 1), Range(16, 16, 16))
    assert sorted(one.part.name for one in found.parts) == ["text_encoder", "vae_decoder", "vae_encoder"]


def test_weights_of_which_the_variant_alone_is_there_are_found(tmp_path):
    """As of PixArt's pipeline, whose denoiser has that variant."""
    (tmp_path / "config.json").write_text("{}")
    save_file({"a": torch.zeros(1)}, tmp_path / "model.fp16.safetensors")
    files = [locate(get_model(name), str(tmp_path)).files for name in ("t5-xxl", "t5-tiny")]
    files.append(locate_component(tmp_path, "transformers", get_model("pixart-sigma").variant).files)
    assert files == [(tmp_path / "model.fp16.safetensors",)] * 3


def test_t5_without_a_recipe_is_refused_before_any_work(folder):
    path = folder / "text_encoder_2" / "config.json"
    path.write_text(json.dumps(PUBLISHED | {"num_layers": 12}))
    with pytest.raises(
        UnsupportedError, match=r"config\.json: an encoder of another size, want one of t5-xxl, t5-tiny"
    ):
        work(folder)
    tiny_pipelines.save_sdxl(folder.parent / "sdxl")
    with pytest.raises(UsageError, match=r"--quantize-text: .* has no T5 and no language model"):
        work(folder.parent / "sdxl", "sdxl-tiny")
    with pytest.raises(UsageError, match="--quantize-text: given alone, want --pipeline with it"):
        BuildConfig("flux1-tiny", (89,), folder, quantize_text=True)


def test_an_engine_is_put_into_the_pipelines_folder_whole(tmp_path):
    source, target = tmp_path / "t5-xxl-sm_89", tmp_path / "text_encoder_2"
    for one in (source, target):
        one.mkdir()
    names = {"plan": "model.plan", "onnx": "model.onnx", "plugin": "libplugin.so"}
    for name in (*names.values(), "model.onnx.data"):
        (source / name).write_text(name)
    files = {part: file_entry(source / name, version="1.0.0") for part, name in names.items()}
    data = file_entry(source / "model.onnx.data")
    files["onnx"] |= {"data": data, "bytes": files["onnx"]["bytes"] + data["bytes"]}
    write_manifest(source, model="t5-xxl", **files)
    assert _copied_engine(source, target) == manifest.verify(target, parts=(*names,)) == manifest.read(source)
