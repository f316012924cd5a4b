"""quantize_group: the method's gains, its contract and its refusals."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from svdq_trt.base.errors import RangeError, ShapeError, UsageError
from svdq_trt.contract.formats import FORMATS, INT4, NVFP4
from svdq_trt.quantize.layer import quantize_group, quantize_linear
from svdq_trt.quantize.preset import PRESETS, Preset
from svdq_trt.quantize.smooth import act_multiplier, candidates

FAST = PRESETS["fast"]
NO_SEARCH = Preset("none", grids=1, tokens=0, rows=0, search_power_iterations=1, power_iterations=0)
FMT = pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda f: f.name)


def case(n: int = 256, k: int = 384, tokens: int = 128) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [N, K] and tokens [M, K], both with outlier channels 50 times larger."""
    g = torch.Generator().manual_seed(7)
    w, x = torch.randn(n, k, generator=g) / k**0.5, torch.randn(tokens, k, generator=g)
    w[:, torch.randperm(k, generator=g)[:6]] *= 50
    x[:, torch.randperm(k, generator=g)[:6]] *= 50
    return w, x


def sqnr(w, x, fmt, rank, preset=FAST):
    return quantize_group([w], [None], x, fmt, rank, preset=preset).sqnr_db


@FMT
def test_each_rung_of_the_method_gains(fmt):
    w, x = case()
    plain, smooth = sqnr(w, x, fmt, 0, NO_SEARCH), sqnr(w, x, fmt, 0)
    both = sqnr(w, x, fmt, 32)
    assert smooth > plain + 2  # w4a16 too: smoothing moves magnitude between groups of the weight
    assert both > smooth + 5
    assert sqnr(w, x, fmt, 64) > both


@FMT
@pytest.mark.parametrize("rank", [0, 32])
def test_module_output_has_the_reported_sqnr(fmt, rank):
    w, x = case()
    linear = nn.Linear(384, 256).half()
    linear.weight.data = w.half()
    q = quantize_group([linear.weight], [linear.bias], x.half(), fmt, rank, preset=FAST)
    module = q.module()
    bias = linear.bias.detach().float()
    want = x.half().float() @ linear.weight.detach().float().T + bias
    got = module(x.half()).float()
    signal = (want - bias).square().sum()
    assert 10 * torch.log10(signal / (got - want).square().sum()) == pytest.approx(q.sqnr_db, abs=0.3)
    assert module.rank == rank and module.out_features == 256


def test_dequantize_is_the_effective_weight():
    w, x = case()
    linear = nn.Linear(384, 256, bias=False)
    linear.weight.data = w
    module = quantize_linear(linear, x, format="w4a16", rank=32)
    y = module(x.half()).float()
    torch.testing.assert_close(y, x.half().float() @ module.dequantize().T, rtol=2e-2, atol=2e-2)


def test_group_equals_stacked_weight_with_zero_bias_where_missing():
    w, x = case()
    bias = torch.arange(128.0)
    q = quantize_group([w[:128], w[128:]], [bias, None], x, INT4, 16, preset=FAST)
    whole = quantize_group([w], [None], x, INT4, 16, preset=FAST)
    assert torch.equal(q.weights.qweight, whole.weights.qweight)
    assert torch.equal(q.weights.bias, torch.cat([bias, torch.zeros(128)]).half())


def test_results_repeat_bit_for_bit():
    w, x = case()
    a, b = (quantize_group([w], [None], x, NVFP4, 32, preset=FAST) for _ in range(2))
    assert (
        all(torch.equal(a.weights.tensors[k], b.weights.tensors[k]) for k in a.weights.tensors) and a.trials == b.trials
    )


def test_candidate_list_is_the_published_one():
    grid = candidates(20)
    assert len(grid) == 39 and grid[0] == (0.0, 0.0) and (0.5, 0.0) in grid and (0.25, 0.75) in grid


@FMT
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_act_multiplier_is_finite_positive_and_representable(fmt, dtype):
    x_absmax = torch.tensor([0.0, 1e-7, 1.0, 6e4, 3.0])
    w_absmax = torch.tensor([1.0, 0.0, 1e-6, 40.0, 1e-3])
    for alpha, beta in candidates(10):
        mul = act_multiplier(x_absmax, w_absmax, alpha, beta, fmt, dtype)
        assert mul.isfinite().all() and (mul > 0).all() and torch.equal(mul, mul.to(dtype).float())


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda w, x: (w[:, :100], x[:, :100], 32), ShapeError, "layer: K = 100, want a multiple of 64"),
        (lambda w, x: (w[:100], x, 32), ShapeError, "layer: N = 100, want a multiple of 8"),
        (lambda w, x: (w, x, 20), ShapeError, "layer: rank 20, want a multiple of 16"),
        (lambda w, x: (w, x[:, :64], 32), ShapeError, "calibration input"),
        (lambda w, x: (w * torch.nan, x, 32), RangeError, "layer: NaN or Inf in the weight"),
        (lambda w, x: (w, x / 0, 32), RangeError, "layer: NaN or Inf in the calibration input"),
    ],
)
def test_bad_input_is_refused_by_name(change, error, text):
    w, x, rank = change(*case())
    with pytest.raises(error, match=text.replace("(", r"\(")):
        quantize_group([w], [None], x, INT4, rank, name="layer", preset=FAST)


@FMT
def test_layer_of_zeros_stays_zero_with_a_finite_figure(fmt):
    _, x = case()
    q = quantize_group([torch.zeros(256, 384)], [None], x, fmt, 32, preset=FAST)
    assert q.sqnr_db == 0 and not q.module()(x.half()).any()


def test_unknown_format_is_refused():
    with pytest.raises(UsageError, match="format: 'int3', want one of int4"):
        quantize_linear(nn.Linear(64, 8), torch.zeros(1, 64), format="int3")


def test_weight_that_overflows_f16_is_refused():
    w, x = case()
    with pytest.raises(RangeError, match="overflows"):
        quantize_group([w * 1e7], [None], x, INT4, 0, name="layer", preset=NO_SEARCH)
