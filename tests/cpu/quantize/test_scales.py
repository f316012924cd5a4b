"""Scales by search: never worse than absmax by what they minimize, valid as stored, and used by GPTQ."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from svdq_trt.contract import numerics
from svdq_trt.contract.formats import FORMATS, INT4, NVFP4, W4A8, W4A8_Z_MAX
from svdq_trt.quantize.gptq import curvature, damping, gptq
from svdq_trt.quantize.layer import quantize_group
from svdq_trt.quantize.lowrank import Seen
from svdq_trt.quantize.preset import Preset
from svdq_trt.quantize.scales import importance, search_scales
from svdq_trt.quantize.split import SIGNED, split_weight

FMT = pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda f: f.name)
F16 = torch.float16
PLAIN = Preset("plain", grids=1, tokens=0, rows=0, search_power_iterations=2, power_iterations=4, gptq=True)


def weight(n: int = 32, k: int = 256) -> torch.Tensor:
    """[N, K] with a group of zeros and one of a single value."""
    w = torch.randn(n, k, generator=torch.Generator().manual_seed(2))
    w[3, :64], w[4, 64:128] = 0, 0.25
    return w


def tokens(k: int = 256) -> torch.Tensor:
    g = torch.Generator().manual_seed(3)
    return (torch.randn(600, k, generator=g) * torch.rand(k, generator=g).add(0.1)).half()


def rounded(w, scales, fmt):
    """Codes and the values that the stored tensors mean."""
    groups = numerics.grouped(w, fmt.weight_group)
    values = numerics.round_weight(groups, scales.step[..., None], fmt).flatten(1)
    return values, numerics.dequantize_weight(numerics.pack_weight(values, scales, fmt), fmt)


@FMT
@pytest.mark.parametrize("even", [True, False])
def test_no_group_is_worse_and_most_are_better(fmt, even):
    w = weight()
    h = torch.ones(256) if even else importance(tokens().float())

    def errors(scales):
        return numerics.grouped((rounded(w, scales, fmt)[1] - w).square() * h, fmt.weight_group).sum(-1)

    before, after = errors(numerics.weight_scales(w, fmt)), errors(search_scales(w, h, fmt, F16))
    assert (after <= before * (1 + 1e-5)).all()
    assert after.sum() < 0.95 * before.sum()


@FMT
def test_scales_are_what_is_stored(fmt):
    w = weight()
    scales = search_scales(w, importance(tokens().float()), fmt, F16)
    values, stored = rounded(w, scales, fmt)
    step = scales.step.repeat_interleave(fmt.weight_group, 1)
    torch.testing.assert_close(stored, values * step, rtol=1e-6, atol=0)
    assert (stored[3, :64] == 0).all() and torch.equal(scales.wscale2, numerics.weight_scales(w, fmt).wscale2)
    if fmt is W4A8:
        assert scales.wscale.min() >= 1 and scales.wscale.max() <= W4A8_Z_MAX


def test_importance_ranks_channels_and_forgets_none():
    x = torch.zeros(8, 64)
    x[:, 0], x[:, 1] = 2.0, 1.0
    h = importance(x)
    assert h[0] > h[1] > h[2] > 0 and h[0] == pytest.approx(4 + 0.05 * 5 / 64)


@pytest.mark.parametrize("fmt", [INT4, NVFP4, W4A8], ids=lambda f: f.name)
def test_gptq_rounds_with_the_searched_scales(fmt):
    w, x = weight(), tokens()
    seen = Seen(torch.ones(1, 256), torch.ones(256))
    split = split_weight(w, torch.ones(256), seen, fmt, 16, F16, 4, SIGNED)
    h = importance(x.float())
    curve = curvature(x.float(), damping(x.float()))
    got = gptq(w, split, curve, fmt, F16, h)
    want = search_scales(split.residual(w), h, fmt, F16)
    assert torch.equal(got.scales.wscale, want.wscale)
    assert not torch.equal(got.scales.wscale, gptq(w, split, curve, fmt, F16).scales.wscale)


@FMT
def test_rung_is_kept_only_if_better_and_gptq_then_uses_it(fmt):
    w, x = weight(), tokens()
    q = quantize_group([w], [None], x, fmt, 16, preset=replace(PLAIN, scales=True))
    plain = quantize_group([w], [None], x, fmt, 16, preset=PLAIN)
    names = [r.name for r in q.rungs]
    assert names == ["svd", "scales", "gptq"] and q.rungs[1].kept == (q.rungs[1].sqnr_db > q.rungs[0].sqnr_db)
    assert q.rungs[1].kept and q.sqnr_db > plain.sqnr_db
