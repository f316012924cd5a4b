"""FLUX.1: what is quantized, what the stand-ins compute, and both variants of guidance."""

import dataclasses

import pytest
import torch

from svdq_trt.calibrate import collect
from svdq_trt.checkpoint import load
from svdq_trt.contract.formats import Activation
from svdq_trt.models import get_model
from svdq_trt.models.positions import RotaryTable, rotate

TINY = get_model("flux1-tiny")


def test_counts_of_quantized_and_kept_layers():
    spec = get_model("flux1-dev")
    module = spec.build()
    recipe = spec.recipe(module)
    four_bit = {m for g in recipe.groups if not g.weight_only for m in g.members}
    assert len(four_bit) == 418
    assert len([g for g in recipe.groups if g.weight_only]) == 2 * 19 + 38 + 1
    numel = {name: p.numel() for name, p in module.named_parameters()}
    assert round(sum(numel[f"{m}.weight"] for m in four_bit) / 1e9, 2) == 8.61
    assert {k.name.split(".")[0] for k in recipe.kept} == {
        "x_embedder",
        "context_embedder",
        "time_text_embed",
        "proj_out",
    }


def test_nodes_of_both_kinds_of_block():
    groups = {g.node: g for g in TINY.groups(TINY.build())}
    double = [n.removeprefix("transformer_blocks.1.") for n in groups if n.startswith("transformer_blocks.1.")]
    assert double == [
        "norm1.linear",
        "norm1_context.linear",
        "attn.to_qkv",
        "attn.to_added_qkv",
        "attn.to_out.0",
        "attn.to_add_out",
        "ff.net.0",
        "ff.net.2",
        "ff_context.net.0",
        "ff_context.net.2",
    ]
    block = "single_transformer_blocks.0"
    assert groups[f"{block}.proj_mlp"].activation is Activation.GELU_TANH
    assert groups[f"{block}.norm.linear"].weight_only
    halves = [groups[f"{block}.proj_out.{half}"] for half in ("attn", "mlp")]
    assert [h.columns for h in halves] == [(0, 128), (128, 640)]
    assert all(h.members == (f"{block}.proj_out",) for h in halves)


def test_a_skip_of_one_half_keeps_the_whole_projection():
    recipe = TINY.recipe(TINY.build(), skip=["single_transformer_blocks.0.proj_out.mlp"])
    assert not [g for g in recipe.groups if g.node.startswith("single_transformer_blocks.0.proj_out")]
    assert "single_transformer_blocks.0.proj_out" in {k.name for k in recipe.kept}


def test_rotary_table_equals_diffusers_in_f64():
    from diffusers.models.transformers.transformer_flux import FluxPosEmbed

    ids = torch.cat((torch.zeros(3, 3), torch.randint(0, 96, (50, 3)).float()))
    want = FluxPosEmbed(10000, [16, 56, 56])(ids)
    got = RotaryTable(10000, (16, 56, 56))(ids)[:2]
    for mine, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=0, atol=2e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_rotation_equals_diffusers(dtype):
    from diffusers.models.embeddings import apply_rotary_emb
    from diffusers.models.transformers.transformer_flux import FluxPosEmbed

    ids = torch.cat((torch.zeros(3, 3), torch.randint(0, 96, (50, 3)).float()))
    x = torch.randn(2, 53, 3, 128).to(dtype)
    want = apply_rotary_emb(x, FluxPosEmbed(10000, [16, 56, 56])(ids), sequence_dim=1)
    got = rotate(x, RotaryTable(10000, (16, 56, 56))(ids))
    assert got.dtype == dtype
    torch.testing.assert_close(got, want, rtol=2**-7 if dtype == torch.bfloat16 else 0, atol=2e-4)


@pytest.mark.parametrize("guidance", [True, False])
@torch.inference_mode()
def test_wrapped_model_equals_diffusers_own_forward(guidance):
    inputs = tuple(io for io in TINY.inputs if guidance or io.name != "guidance")
    config = {**TINY.config, "guidance_embeds": guidance}
    spec = dataclasses.replace(TINY, config=config, inputs=inputs)
    module = load(spec, random_seed=3).float()
    values = spec.example_inputs(2, 64, 128, dtype=torch.float32)
    want = module(**dict(zip((io.name for io in inputs), values, strict=True)), return_dict=False)[0]
    got = spec.wrap(module)(*values)
    torch.testing.assert_close(got, want, rtol=0, atol=1e-4)


@torch.inference_mode()
def test_calibration_gives_each_half_its_own_columns():
    module = load(TINY, random_seed=3)
    calibration = collect(module, TINY, samples=1, height=64, width=64)
    wide, seen = load(TINY, random_seed=3).float(), {}
    block = "single_transformer_blocks.1"
    wide.get_submodule(f"{block}.proj_out").register_forward_pre_hook(lambda _, args: seen.update(x=args[0]))
    TINY.wrap(wide)(*TINY.example_inputs(1, 64, 64, seed=0, dtype=torch.float32, noise=0.5))
    amax = seen["x"].abs().flatten(0, -2).amax(0)
    torch.testing.assert_close(calibration.amax[f"{block}.proj_out.attn"], amax[:128], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(calibration.amax[f"{block}.proj_out.mlp"], amax[128:], rtol=1e-4, atol=1e-5)
