"""Our tables of original names against diffusers' own converters."""

from __future__ import annotations

import pytest
import torch

from svdq_trt.lora.apply import layer_shapes
from svdq_trt.lora.flux_names import flux_original_names
from svdq_trt.lora.names import TEXT_ENCODER, name_table
from svdq_trt.lora.tensor_keys import parse_key
from svdq_trt.lora.unet_names import unet_original_name
from svdq_trt.models import get_model


@pytest.mark.parametrize("name", ["sdxl", "sdxl-tiny"])
def test_unet_names_are_what_diffusers_converts(name):
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    spec = get_model(name)
    layers = layer_shapes(spec)
    parameters = dict(spec.build().named_parameters())
    originals = {unet_original_name(layer, layers, spec.config["layers_per_block"]): layer for layer in layers}
    assert len(originals) == len(layers) and "" not in originals
    # The converter renames whole files by rules of its own; values are the original names here.
    file = {
        f"{old}.{leaf}": f"{old}.{leaf}"
        for old, new in originals.items()
        for leaf in ("weight", "bias")
        if f"{new}.{leaf}" in parameters
    }
    for block in range(40):  # the norms, which have no weight layer but which the converter asks for
        for side in ("input_blocks", "output_blocks"):
            if any(key.startswith(f"{side}.{block}.0.in_layers") for key in file):
                for norm in ("in_layers.0", "out_layers.0"):
                    file[f"{side}.{block}.0.{norm}.weight"] = file[f"{side}.{block}.0.{norm}.bias"] = "norm"
    for leaf in ("weight", "bias"):
        file[f"out.0.{leaf}"] = "norm"
    config = {**spec.config, "class_embed_type": None, "addition_embed_type": "text_time"}
    converted = convert_ldm_unet_checkpoint({f"model.diffusion_model.{k}": v for k, v in file.items()}, config)
    got = {value.removeprefix("model.diffusion_model."): key for key, value in converted.items() if value != "norm"}
    compared = 0
    for old, new in originals.items():
        for leaf in ("weight", "bias"):
            if f"{old}.{leaf}" in got:
                assert got[f"{old}.{leaf}"] == f"{new}.{leaf}"
                compared += 1
    assert compared >= len(layers)


def test_flux_names_are_what_diffusers_converts():
    """A LoRA of every original layer: diffusers' conversion has the rows that the table says, on those layers."""
    from diffusers.loaders.lora_conversion_utils import _convert_kohya_flux_lora_to_diffusers

    spec = get_model("flux1-dev")  # diffusers' converter knows this size only
    shapes = layer_shapes(spec)
    table = dict(flux_original_names({layer: shape[0] for layer, shape in shapes.items()}))
    assert {part[0] for parts in table.values() for part in parts} == set(shapes)
    file, ups = {}, {}
    for i, (original, parts) in enumerate(table.items()):
        rows = sum(part[3] for part in parts)
        key = f"lora_unet_{original.replace('.', '_')}"
        ups[original] = torch.arange(rows, dtype=torch.float32)[:, None] + 100_000.0 * i
        file[f"{key}.lora_down.weight"], file[f"{key}.lora_up.weight"] = torch.ones(1, 1), ups[original]
    converted = _convert_kohya_flux_lora_to_diffusers(dict(file))
    for original, parts in table.items():
        for layer, start, source, rows in parts:
            key = f"{layer}.lora_B.weight"
            up = converted.get(f"transformer.{key}", converted.get(key))
            assert up is not None, layer
            assert torch.equal(up[start : start + rows], ups[original][source : source + rows]), original


@pytest.mark.parametrize("name", ["sdxl", "flux1-dev"])
def test_no_spelling_means_two_layers(name):
    spec = get_model(name)
    shapes = layer_shapes(spec)
    table = name_table(spec, shapes)
    for prefix in ("lora_unet_", "lora_transformer_"):  # underscores could make two names one
        plain = {layer.replace(".", "_") for layer in shapes}
        assert len(plain) == len(shapes)
        assert all(table[prefix + layer.replace(".", "_")][0].layer == layer for layer in shapes)
    for targets in table.values():
        covered = [(t.layer, row) for t in targets for row in (t.start, t.start + t.rows - 1)]
        assert all(0 <= row < shapes[layer][0] for layer, row in covered)


@pytest.mark.parametrize(
    ("key", "layer", "part"),
    [
        ("unet.a.to_q.lora_A.weight", "unet.a.to_q", "down"),
        ("a.to_q.lora_B.default.weight", "a.to_q", "up"),
        ("a.processor.to_q_lora.down.weight", "a.processor.to_q", "down"),
        ("unet.a.ff.net.0.proj.lora.up.weight", "unet.a.ff.net.0.proj", "up"),
        ("a.to_k.lora_linear_layer.down.weight", "a.to_k", "down"),
        ("lora_unet_a_to_q.lora_up.weight", "lora_unet_a_to_q", "up"),
        ("lora_unet_conv.lora_mid.weight", "lora_unet_conv", "mid"),
        ("lora_unet_a_to_q.alpha", "lora_unet_a_to_q", "alpha"),
        ("lora_unet_a_to_q.dora_scale", "lora_unet_a_to_q", "dora_scale"),
        ("a.to_q.lora_magnitude_vector", "a.to_q", "magnitude"),
        ("a.to_q.lora_magnitude_vector.default.weight", "a.to_q", "magnitude"),
        ("lora_unet_a.hada_w1_a", "lora_unet_a", "hada_w1_a"),
        ("lora_unet_a.lokr_w2", "lora_unet_a", "lokr_w2"),
        ("lora_unet_a.lokr_w2_b", "lora_unet_a", "lokr_w2_b"),
        ("diffusion_model.a.diff_b", "diffusion_model.a", "diff_b"),
        ("a.to_q.lora_B.bias", "a.to_q", "up_bias"),
        ("down_blocks.0.weight", "down_blocks.0", "weight"),
        ("double_blocks.1.processor.qkv_lora2.down.weight", "double_blocks.1.processor.qkv_lora2", "down"),
        ("single_blocks.1.processor.qkv_lora.up.weight", "single_blocks.1.processor.qkv_lora", "up"),
        ("a.to_q.oft_R.default.weight", "a.to_q", "oft_R"),
        ("a.to_q.oft_r", "a.to_q", ""),
        ("a.to_q.boft_R", "a.to_q", ""),
        ("a.norm.w_norm", "a.norm", ""),
    ],
)
def test_tensor_names_are_taken_apart(key, layer, part):
    got = parse_key(key)
    assert (got.layer, got.part) == (layer, part) and bool(got.reason) == (part == "")


def test_text_encoder_names():
    for name in (
        "lora_te_text_model.alpha",
        "lora_te1_x.lora_up.weight",
        "lora_te2_x.lora_down.weight",
        "text_encoder.text_model.x.lora_A.weight",
        "text_encoder_2.x.lora_A.weight",
        "text_encoders.clip_l.transformer.x.lora_A.weight",
        "bundle_emb.cat.clip_l",
        "bundle_emb.cat.string_to_param.*",
        "clip_g",
        "clip_l.text_model.x.lora_up.weight",
    ):
        assert TEXT_ENCODER.fullmatch(name), name
    for name in (
        "lora_unet_time_embed_0.alpha",
        "unet.down_blocks.0.lora_A.weight",
        "transformer.context_embedder.x",
        "text_embedder.x",
        "time_text_embed.text_embedder.linear_1.lora_A.weight",
    ):
        assert not TEXT_ENCODER.fullmatch(name), name
