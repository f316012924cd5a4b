"""Unsigned activation codes after GELU: when they are chosen, what they gain, how the bias compensates."""

from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
import torch

from svdq_trt.calibrate import collect
from svdq_trt.checkpoint import load
from svdq_trt.contract import numerics
from svdq_trt.contract.formats import ACT_SHIFT, FORMATS, INT4, Activation
from svdq_trt.contract.reference import linear
from svdq_trt.contract.reference.quant import QuantWeight, dequantize_weight
from svdq_trt.models import TWINS, get_model
from svdq_trt.quantize.layer import quantize_group
from svdq_trt.quantize.lowrank import Seen
from svdq_trt.quantize.preset import PRESETS
from svdq_trt.quantize.split import Coding, Tokens, split_weight

SHIFT = ACT_SHIFT[Activation.GELU_TANH]
DEFAULT = replace(PRESETS["default"], grids=3)
NUMPY = {torch.float16: np.float16, torch.bfloat16: ml_dtypes.bfloat16}


def layer(size: float = 1.0, n: int = 96, k: int = 256, tokens: int = 768) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [N, K] and GELU outputs [T, K] of pre-activations about `size` large."""
    g = torch.Generator().manual_seed(11)
    hidden = torch.randn(tokens, 64, generator=g) @ torch.randn(64, k, generator=g) / 8
    return torch.randn(n, k, generator=g) / k**0.5, torch.nn.functional.gelu(size * hidden, approximate="tanh")


def fresh_sqnr(q, w, x, bias=0.0):
    want = x.float() @ w.T + bias
    noise = q.module()(x).float() - want
    return float(10 * torch.log10((want - bias).square().sum() / noise.square().sum()))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("preset", [PRESETS["fast"], DEFAULT], ids=lambda p: p.name)
def test_unsigned_codes_gain_behind_gelu(preset, dtype):
    w, x = layer()
    bias, x = torch.linspace(-2, 2, len(w)), x.to(dtype)
    signed, unsigned = (
        quantize_group([w], [bias], x[:384], INT4, 16, act_dtype=dtype, act_shift=shift, preset=preset)
        for shift in (0.0, SHIFT)
    )
    assert (signed.weights.act_unsigned, signed.weights.act_shift) == (False, 0) and unsigned.weights.act_unsigned
    assert unsigned.weights.act_shift == SHIFT
    assert fresh_sqnr(unsigned, w, x[384:], bias) > fresh_sqnr(signed, w, x[384:], bias) + 2
    seen = x[:384][3::4] if unsigned.rungs else x[:384]
    assert fresh_sqnr(unsigned, w, seen, bias) == pytest.approx(unsigned.sqnr_db, abs=0.1)


def test_signed_codes_stay_where_they_are_better():
    """Values far below the shift: it would take most of the codes' range."""
    w, x = layer(size=0.02)
    plain, asked = (quantize_group([w], [None], x.half(), INT4, 16, act_shift=s, preset=DEFAULT) for s in (0.0, SHIFT))
    assert not asked.weights.act_unsigned and asked.weights.act_shift == 0 and asked.trials == plain.trials
    assert all(torch.equal(asked.weights.tensors[name], plain.weights.tensors[name]) for name in plain.weights.tensors)


@pytest.mark.parametrize("fmt", [f for f in FORMATS.values() if f is not INT4], ids=lambda f: f.name)
def test_other_formats_have_no_unsigned_codes(fmt):
    w, x = layer()
    q = quantize_group([w], [None], x.half(), fmt, 16, act_shift=SHIFT, preset=PRESETS["fast"])
    assert not q.weights.act_unsigned and q.weights.act_shift == 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_bias_is_the_references_rounded_once(dtype):
    """b - shift * sum_k Q(W)_nk act_mul_k, of the codes as stored."""
    w, x = layer()
    bias = torch.linspace(-2, 2, len(w))
    q = quantize_group([w], [bias], x.to(dtype), INT4, 16, act_dtype=dtype, act_shift=SHIFT, preset=DEFAULT)
    t = {name: v.float().numpy() if v.is_floating_point() else v.numpy() for name, v in q.weights.tensors.items()}
    stored = dequantize_weight(QuantWeight(t["qweight"], t["wscale"], t["wscale2"]), INT4)
    want = bias.double().numpy() - SHIFT * stored @ t["act_mul"].astype(np.float64)
    assert np.array_equal(want.astype(np.float32).astype(NUMPY[dtype]).astype(np.float32), t["bias"])


@pytest.mark.parametrize("size", [1.0, 300.0])
def test_search_measures_what_the_reference_computes(size):
    """The shift is taken off by the node's bias, which is rounded; so are t and the output."""
    w, x = layer()
    bias = torch.linspace(-2, 2, len(w)) * size
    coding, mul = Coding(True, SHIFT), torch.rand(256, generator=torch.Generator().manual_seed(1)).half().float() + 0.5
    split = split_weight(w, mul, Seen(x, x.abs().amax(0)), INT4, 16, torch.float16, 4, coding)
    tokens = Tokens(x, x.half().float() @ w.T, mul, INT4, torch.float16, coding, bias)
    packed = numerics.pack_weight(split.values, split.scales, INT4)
    y = linear.round_output(
        linear.linear_unrounded(
            x.half().numpy(),
            QuantWeight(*(part.numpy() for part in packed)),
            *(part.half().numpy() for part in (mul, split.down, split.up, split.node_bias(bias))),
            INT4,
            act_unsigned=True,
            act_shift=SHIFT,
        ),
        np.dtype(np.float16),
    )
    want = ((y.astype(np.float64) - bias.numpy() - tokens.y.double().numpy()) ** 2).sum() / tokens.energy
    assert tokens.error(split) == pytest.approx(want, rel=1e-3)


@pytest.mark.parametrize("name", TWINS)
def test_recipes_mark_exactly_the_inputs_that_are_gelu_outputs(name):
    """Checked by value: a GELU's output goes below 0, and never below -0.17; no other quantized input does that."""
    spec = get_model(name)
    module = load(spec, random_seed=3)
    groups = [g for g in spec.groups(module) if not g.weight_only]
    calibration = collect(module, spec, groups, samples=1, height=spec.profile.height[0], width=spec.profile.width[0])
    for group in groups:
        low = float(calibration.x[group.node].min())
        assert (-SHIFT <= low < -0.1) == (group.x_from in ACT_SHIFT), (group.node, low)
