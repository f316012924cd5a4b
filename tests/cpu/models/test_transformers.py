"""PixArt, SANA and Stable Diffusion 3: masks, and what is quantized."""

import dataclasses

import pytest
import torch
from safetensors.torch import save_file

from svdq_trt.base.errors import UnsupportedError
from svdq_trt.checkpoint import load
from svdq_trt.models import get_model

NAMES = ["pixart-tiny", "sana-tiny", "sd3-tiny"]


@pytest.mark.parametrize("name", ["pixart-tiny", "sana-tiny"])
@torch.inference_mode()
def test_padding_tokens_change_nothing(name):
    spec = get_model(name)
    flat = spec.wrap(load(spec, random_seed=4).float())
    inputs = list(spec.example_inputs(1, 64, 64, dtype=torch.float32))
    want = flat(*inputs)
    mask = inputs[3]
    assert 0 < mask.sum() < mask.numel()
    inputs[1] = torch.where(mask[..., None] > 0, inputs[1], 7.0)
    torch.testing.assert_close(flat(*inputs), want, rtol=0, atol=1e-5)
    inputs[3] = torch.ones_like(mask)
    assert (flat(*inputs) - want).abs().max() > 1e-3


@pytest.mark.parametrize(
    "name,four_bit,weight_only,kept", [("pixart-sigma", 8 * 28, 2 * 28, 7), ("sana-1.6b", 8 * 20, 2 * 20, 27)]
)
def test_counts_of_quantized_and_kept_layers(name, four_bit, weight_only, kept):
    spec = get_model(name)
    recipe = spec.recipe(spec.build())
    assert len([m for g in recipe.groups if not g.weight_only for m in g.members]) == four_bit
    assert {g.node.rpartition(".")[2] for g in recipe.groups if g.weight_only} == {"to_kv"}
    assert len([m for g in recipe.groups if g.weight_only for m in g.members]) == weight_only
    assert len(recipe.kept) == kept


def test_sd3_blocks_differ_by_what_they_have():
    spec = get_model("sd3.5-medium")
    groups = {g.node for g in spec.groups(spec.build())}
    assert "transformer_blocks.12.attn2.to_qkv" in groups and "transformer_blocks.13.attn2.to_qkv" not in groups
    assert "transformer_blocks.22.ff_context.net.0" in groups
    last = {n.removeprefix("transformer_blocks.23.") for n in groups if n.startswith("transformer_blocks.23.")}
    assert last == {
        "norm1.linear",
        "norm1_context.linear",
        "attn.to_qkv",
        "attn.to_added_qkv",
        "attn.to_out.0",
        "ff.net.0",
        "ff.net.2",
    }


def test_width_that_is_no_multiple_of_the_group_is_kept_with_that_reason():
    """PixArt's 72 channels a head times 4 heads: 288 is no multiple of 64, its MLP's 1152 is."""
    tiny = get_model("pixart-tiny")
    config = {**tiny.config, "attention_head_dim": 72, "cross_attention_dim": 288}
    spec = dataclasses.replace(tiny, config=config)
    recipe = spec.recipe(spec.build())
    reasons = {k.name: k.reason for k in recipe.kept}
    assert reasons["transformer_blocks.0.attn1.to_q"] == "K = 288 is not a multiple of 64"
    assert {g.node for g in recipe.groups} == {f"transformer_blocks.{i}.ff.net.2" for i in (0, 1)}


@pytest.mark.parametrize("name", NAMES)
def test_layer_without_a_rule_is_refused(name):
    spec = get_model(name)
    module = spec.build()
    module.novel = torch.nn.Linear(64, 64, device="meta")
    with pytest.raises(UnsupportedError, match="layer 'novel': no rule"):
        spec.recipe(module)


def test_published_config_may_name_the_older_class(tmp_path):
    """PixArt-Sigma's config.json says Transformer2DModel."""
    import json

    spec = get_model("pixart-tiny")
    (tmp_path / "config.json").write_text(json.dumps({**spec.config, "_class_name": "Transformer2DModel"}))
    save_file(load(spec, random_seed=4).state_dict(), tmp_path / "diffusion_pytorch_model.safetensors")
    load(spec, checkpoint=str(tmp_path))
