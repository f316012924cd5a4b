"""The rungs above the plain split: what each gains on tokens it never saw, and what it must not do."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from svdq_trt.base.errors import RangeError
from svdq_trt.contract import numerics
from svdq_trt.contract.formats import FORMATS, INT4, NVFP4, W4A8, W4A16
from svdq_trt.quantize.gptq import curvature, damping, gptq, refit
from svdq_trt.quantize.iterate import iterate
from svdq_trt.quantize.layer import quantize_group
from svdq_trt.quantize.lowrank import Seen
from svdq_trt.quantize.preset import DEFAULT_PRESET, PRESETS, Preset
from svdq_trt.quantize.smooth import act_multiplier
from svdq_trt.quantize.split import Tokens, split_weight

FMT = pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda f: f.name)
F16 = torch.float16
BASE = Preset("base", grids=3, tokens=0, rows=0, search_power_iterations=2, power_iterations=6)
ITERATED = replace(BASE, iterations=4)
SCALED = replace(ITERATED, scales=True)
ROUNDED = replace(SCALED, gptq=True, dampings=(1.0, 4.0))
REFITTED = replace(ROUNDED, refit=True)


def layer(kind: str, n: int = 192, k: int = 256, tokens: int = 384) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight [N, K], correlated tokens [T, K] f16 with outlier channels (not for "mild")."""
    g = torch.Generator().manual_seed(3)
    decay, size = {"strong": (0.8, 20.0), "skewed": (0.6, 5.0), "mild": (0.3, 1.0)}[kind]
    basis = torch.linalg.qr(torch.randn(k, k, generator=g)).Q
    x = torch.randn(tokens, k, generator=g) * torch.arange(1, k + 1).pow(-decay) @ basis * k**0.5
    x = torch.nn.functional.gelu(x) if kind == "skewed" else x
    w = torch.randn(n, k, generator=g) / k**0.5
    x[:, torch.randperm(k, generator=g)[:4]] *= size
    w[:, torch.randperm(k, generator=g)[:4]] *= size / 2
    return w, x.half()


def fresh_sqnr(w, x, fmt, preset, rank=16, seen=256):
    """SQNR in dB on the tokens after the first `seen`, the only ones that the quantizer gets."""
    q = quantize_group([w], [None], x[:seen], fmt, rank, preset=preset)
    want = x[seen:].float() @ w.T
    noise = q.module()(x[seen:]).float() - want
    return float(10 * torch.log10(want.square().sum() / noise.square().sum()))


def start(w, x, fmt, rank=16):
    """A plain split and its tokens."""
    mul = act_multiplier(x.float().abs().amax(0), w.abs().amax(0), 0.5, 0.5, fmt, F16)
    seen = Seen(x.float(), x.float().abs().amax(0))
    return split_weight(w, mul, seen, fmt, rank, F16, 6), Tokens(x.float(), x.float() @ w.T, mul, fmt, F16)


@FMT
@pytest.mark.parametrize("kind", ["strong", "skewed", "mild"])
def test_every_rung_holds_or_gains_on_fresh_tokens(kind, fmt):
    w, x = layer(kind)
    presets = (BASE, ITERATED, SCALED, ROUNDED, REFITTED)
    base, iterated, scaled, rounded, refitted = (fresh_sqnr(w, x, fmt, p) for p in presets)
    assert iterated > base + 0.2 and scaled > iterated - 0.1
    assert rounded > scaled - 0.1 and refitted > rounded - 0.1  # the guard's tokens are not these
    if kind != "mild":
        assert rounded > scaled + 0.5
    assert refitted > base + 0.7


@FMT
@pytest.mark.parametrize("kind", ["strong", "skewed"])
def test_gptq_beats_rounding_to_nearest_without_any_other_rung(kind, fmt):
    w, x = layer(kind)
    for rank in (0, 16):
        assert fresh_sqnr(w, x, fmt, replace(BASE, gptq=True), rank) > fresh_sqnr(w, x, fmt, BASE, rank) + 0.5


def test_default_and_best_are_no_worse_than_fast():
    w, x = layer("skewed")
    fast, default, best = (fresh_sqnr(w, x, INT4, PRESETS[p]) for p in ("fast", "default", "best"))
    assert default > fast + 0.5 and best > default - 0.1


@pytest.mark.parametrize("fmt", [INT4, NVFP4, W4A8], ids=lambda f: f.name)
def test_feedback_gives_the_codes_of_gptq_by_its_definition(fmt):
    """Column by column with the inverse Hessian, in fp64, as the paper's algorithm is written."""
    w, x = layer("strong", n=24, k=192)
    split, tokens = start(w, x, fmt)
    d = damping(tokens.smoothed)
    got = gptq(w, split, curvature(tokens.smoothed, d), fmt, F16)

    residual = split.residual(w)
    step = numerics.weight_scales(residual, fmt).step.repeat_interleave(fmt.weight_group, 1)
    h = tokens.smoothed.double().T @ tokens.smoothed.double()
    order = torch.argsort(tokens.smoothed.square().sum(0), descending=True)
    h = h[order][:, order] + d * torch.eye(192, dtype=torch.float64)
    u = torch.linalg.cholesky(torch.linalg.inv(h), upper=True)
    todo, want = residual.double()[:, order], torch.empty_like(residual)
    for i, column in enumerate(order.tolist()):
        want[:, column] = numerics.round_weight(todo[:, i].float(), step[:, column], fmt)
        wrong = (todo[:, i] - want[:, column].double() * step[:, column].double()) / u[i, i]
        todo[:, i:] -= wrong[:, None] * u[i, i:]
    same_rows = (got.values == want).all(1)  # one tie that falls the other way changes the rest of its row
    assert same_rows.float().mean() > 0.8
    assert not torch.equal(got.values, split.values)


def test_refit_is_the_best_low_rank_part_for_the_tokens():
    w, x = layer("strong")
    split, tokens = start(w, x, INT4)
    d = damping(tokens.smoothed)
    got = refit(w, split, tokens.smoothed, d, F16)
    delta = (w / split.act_mul - split.rounded()).double()
    xs = tokens.smoothed.double()
    root = torch.linalg.cholesky(xs.T @ xs + d * torch.eye(256, dtype=torch.float64))
    best = torch.linalg.svdvals(delta @ root)[16:].square().sum()
    left = ((delta - got.up.double() @ (got.down / split.act_mul).double()) @ root).square().sum()
    assert best * 0.999 < left < best * 1.02
    assert torch.equal(got.values, split.values)


@FMT
def test_iterations_never_return_a_worse_split(fmt):
    w, x = layer("skewed")
    split, tokens = start(w, x, fmt)
    errors = [tokens.error(iterate(w, split, tokens, fmt, F16, steps, 2)) for steps in (0, 1, 4, 30)]
    assert errors == sorted(errors, reverse=True) and errors[2] < errors[0]


def test_iterations_keep_a_start_that_cannot_be_beaten():
    w, x = layer("skewed")
    split, tokens = start(w, x, INT4)
    tokens.y = tokens.quantized @ split.rounded().T + tokens.x.float() @ split.down.T @ split.up.T
    assert iterate(w, split, tokens, INT4, F16, 5, 2) is split


def test_a_rung_that_held_out_tokens_refuse_is_not_kept():
    """Fitted tokens lie in few directions; held-out ones (every fourth) are white: feedback can only hurt them."""
    w, x = layer("mild")
    g = torch.Generator().manual_seed(5)
    x = (torch.randn(256, 4, generator=g) @ torch.randn(4, 256, generator=g)).half()
    x[3::4] = torch.randn(64, 256, generator=g).half()
    q = quantize_group([w], [None], x, W4A16, 16, preset=replace(BASE, gptq=True, dampings=(1e-3,)))
    plain = quantize_group([w], [None], x, W4A16, 16, preset=BASE)
    assert [(r.name, r.kept) for r in q.rungs] == [("svd", True), ("gptq", False)]
    assert q.rungs[1].sqnr_db < q.rungs[0].sqnr_db == q.sqnr_db
    assert all(torch.equal(q.weights.tensors[name], plain.weights.tensors[name]) for name in q.weights.tensors)


def test_reported_sqnr_is_that_of_the_held_out_tokens():
    w, x = layer("strong")
    q = quantize_group([w], [None], x, NVFP4, 16, preset=REFITTED)
    held = x[3::4]
    want = held.float() @ w.T
    noise = q.module()(held).float() - want
    assert 10 * torch.log10(want.square().sum() / noise.square().sum()) == pytest.approx(q.sqnr_db, abs=0.05)
    kept = [r.sqnr_db for r in q.rungs if r.kept]
    assert kept == sorted(kept) and kept[-1] == q.sqnr_db


@FMT
def test_results_repeat_bit_for_bit(fmt):
    w, x = layer("skewed")
    preset = replace(REFITTED, rounds=2, finalists=2)
    a, b = (quantize_group([w], [None], x, fmt, 16, preset=preset) for _ in range(2))
    assert (
        all(torch.equal(a.weights.tensors[k], b.weights.tensors[k]) for k in a.weights.tensors) and a.rungs == b.rungs
    )


def zero_layer(w, x):
    return w * 0, x


def zero_tokens(w, x):
    return w, x * 0


def dead_channels(w, x):
    x[:, 5:90] = 0
    w[:, 60:130] = 0
    return w, x


def one_token(w, x):
    return w, x[:1]


def few_tokens(w, x):
    return w, x[:33]


def equal_tokens(w, x):
    return w, x[:1].expand(64, -1)


@FMT
@pytest.mark.parametrize(
    "change", [zero_layer, zero_tokens, dead_channels, one_token, few_tokens, equal_tokens], ids=lambda f: f.__name__
)
def test_degenerate_layers_give_finite_tensors(change, fmt):
    w, x = change(*layer("strong"))
    q = quantize_group([w], [None], x, fmt, 16, preset=REFITTED)
    y = q.module()(x).float()
    want = x.float() @ w.T
    assert y.isfinite().all() and abs(q.sqnr_db) < 300
    assert (y - want).square().sum() <= 0.02 * want.square().sum()
    assert bool(q.rungs) == (change in (dead_channels, few_tokens, equal_tokens))


def test_overflow_is_refused_not_crashed_on():
    w, x = layer("strong")
    with pytest.raises(RangeError, match="overflows"):
        quantize_group([w * 1e7], [None], x, INT4, 0, preset=REFITTED)
    with pytest.raises(RangeError, match="overflows"):
        quantize_group([w * 1e14], [None], x, INT4, 16, preset=REFITTED)


def test_rank_above_the_matrix_is_padded_with_zeros():
    w, x = layer("strong", n=8, k=64)
    q = quantize_group([w], [None], x, INT4, 16, preset=REFITTED)
    assert q.weights.lora_up.shape == (8, 16) and not q.weights.lora_up[:, 8:].any()


def test_presets_name_their_rungs():
    fast, default, best = (PRESETS[p].describe() for p in ("fast", "default", "best"))
    assert "GPTQ" not in fast and "held-out" not in fast and fast.count(";") == 1
    for text in (default, best):
        assert "iterations; scale search; GPTQ (" in text and "refit" in text
        assert text.endswith("better on held-out tokens")
    assert "up to 3 rounds" in best and "best 3 candidates" in best


def test_a_slow_search_on_a_cpu_says_what_it_costs():
    fast, default = PRESETS["fast"], PRESETS[DEFAULT_PRESET]
    assert default.search_line("cpu").endswith("; on the CPU, where it takes about 5 times as long as --preset fast")
    assert default.search_line("cuda") == f"search: default: {default.describe()}; on the GPU"
    assert fast.search_line("cpu") == f"search: fast: {fast.describe()}; on the CPU"
