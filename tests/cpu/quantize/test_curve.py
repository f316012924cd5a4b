"""The cheap curve against what the quantizer makes of the same layer, and bytes against its tensors."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from svdq_trt.contract.formats import ACT_SHIFT, FORMATS, Activation
from svdq_trt.contract.sqnr import decibels
from svdq_trt.quantize.curve import error_curve, node_bytes, ranks_of
from svdq_trt.quantize.layer import quantize_group
from svdq_trt.quantize.preset import PRESETS

N, K = 192, 256


def layer(directions: int) -> tuple[torch.Tensor, torch.Tensor]:
    """A weight with that many strong directions, and tokens with outlier channels."""
    g = torch.Generator().manual_seed(directions)
    w = torch.randn(N, K, generator=g)
    w += 6 * torch.randn(N, directions, generator=g) @ torch.randn(directions, K, generator=g) / directions**0.5
    x = torch.randn(300, K, generator=g)
    x[:, :4] *= 20
    return w, x.half()


@pytest.mark.parametrize("fmt", FORMATS)
def test_curve_is_what_the_quantizer_reaches(fmt):
    w, x = layer(16)
    ranks = [0, 16, 48]
    got = error_curve(w, x, x.abs().amax(0), FORMATS[fmt], torch.float16, ranks)
    for rank, error in zip(ranks, got, strict=True):
        q = quantize_group([w], [None], x, FORMATS[fmt], rank, preset=PRESETS["fast"])
        assert decibels(error) == pytest.approx(q.sqnr_db, abs=1.0)


def test_curve_of_a_layer_behind_gelu_has_unsigned_codes():
    w, x = layer(16)
    x = torch.nn.functional.gelu(x.float(), approximate="tanh").half()
    shift = ACT_SHIFT[Activation.GELU_TANH]
    absmax, ranks = x.abs().amax(0), [0, 16, 48]
    signed, got = (error_curve(w, x, absmax, FORMATS["int4"], torch.float16, ranks, s) for s in (0.0, shift))
    for rank, error, without in zip(ranks, got, signed, strict=True):
        q = quantize_group([w], [None], x, FORMATS["int4"], rank, act_shift=shift, preset=PRESETS["fast"])
        assert q.weights.act_unsigned and decibels(error) == pytest.approx(q.sqnr_db, abs=1.0)
        assert decibels(error) > decibels(without) + 1.5
    a, b = (error_curve(w, x, absmax, FORMATS["w4a8"], torch.float16, [16], s) for s in (0.0, shift))
    assert a == b  # only int4 has unsigned codes


def test_curve_falls_where_the_strong_directions_end():
    for directions in (16, 48):
        w, x = layer(directions)
        ranks = ranks_of(N, K, 96)
        db = [decibels(e) for e in error_curve(w, x, x.abs().amax(0), FORMATS["w4a16"], torch.float16, ranks)]
        at = ranks.index(directions)
        slopes = [b - a for a, b in itertools.pairwise(db)]
        assert max(slopes) == slopes[at - 1] > 2 * max(slopes[at:])  # the last of them, and then the noise


def test_curve_repeats_and_a_silent_layer_has_no_error():
    w, x = layer(16)
    a, b = (error_curve(w, x, x.abs().amax(0), FORMATS["int4"], torch.float16, [0, 32]) for _ in range(2))
    assert a == b
    assert error_curve(torch.zeros(N, K), x, x.abs().amax(0), FORMATS["int4"], torch.float16, [0, 32]) == [0.0, 0.0]


@pytest.mark.parametrize("fmt", ["int4", "w4a16"])
def test_trial_that_overflows_does_not_hide_the_others(fmt):
    """Unsmoothed, the first trial, one column's scale is beyond f16."""
    w, x = layer(16)
    w[:, 3] *= 1e6
    x[:, 3] *= 1e-6
    absmax, ranks = x.abs().amax(0), [0, 16]
    plain = error_curve(w.bfloat16(), x.bfloat16(), absmax, FORMATS[fmt], torch.bfloat16, ranks)
    got = error_curve(w, x, absmax, FORMATS[fmt], torch.float16, ranks)
    q = quantize_group([w], [None], x, FORMATS[fmt], 0, preset=PRESETS["fast"])
    assert q.trials[0][2] == math.inf and decibels(got[0]) == pytest.approx(q.sqnr_db, abs=1.0)
    assert decibels(got[0]) == pytest.approx(decibels(plain[0]), abs=0.5)


@pytest.mark.parametrize("fmt", FORMATS)
@pytest.mark.parametrize("rank", [0, 48])
def test_bytes_are_those_of_the_tensors(fmt, rank):
    w, x = layer(16)
    q = quantize_group([w], [None], x, FORMATS[fmt], rank, preset=PRESETS["fast"])
    assert node_bytes(FORMATS[fmt], N, K, rank) == sum(t.numel() * t.element_size() for t in q.weights.tensors.values())


def test_ranks_end_at_the_smaller_side():
    assert ranks_of(40, 256) == [0, 16, 32] and ranks_of(512, 512)[-1] == 128
