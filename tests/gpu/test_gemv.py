"""w4a16 for few tokens (plugins/kernels/gemv): every M, every activation, both dtypes, chunks of K, ragged N."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import pytest
from kernel_calls import OK, Library, LinearCall

from svdq_trt.contract.formats import N_MULTIPLE, Activation
from svdq_trt.contract.reference.quant import Array
from tests.harness.calls import bind, result, run
from tests.harness.linears import (
    Linear,
    assert_accurate,
    assert_bad_rows_stay_alone,
    assert_same_bits,
    random_linear,
    sqnr_db,
)

if TYPE_CHECKING:
    import torch

DTYPES = ("f16", "bf16")
# One for each of the launcher's tiles; none a multiple of 16. On 132 multiprocessors MANY takes 48 rows a CTA, MOST 64
# (and for more than 8 tokens SOME 48).
FEW, SOME, MANY, MOST = 104, 6168, 12296, 12680


def check(lib: Library, linear: Linear) -> None:
    want, got = linear.reference(), run(lib, linear)
    assert_accurate(got, want, linear.dtype)


@pytest.mark.parametrize("r", (0, 16, 32, 112))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", range(1, 17))
def test_gemv_every_number_of_tokens(svdq: Library, m: int, dtype: str, r: int) -> None:
    check(svdq, random_linear("w4a16", dtype, m, FEW, 320, r))
    if r in (0, 32):
        check(svdq, random_linear("w4a16", dtype, m, SOME, 192, r))
        check(svdq, random_linear("w4a16", dtype, m, MANY, 192, r))
        check(svdq, random_linear("w4a16", dtype, m, MOST, 192, r))


@pytest.mark.parametrize("activation", list(Activation), ids=lambda a: a.value or "none")
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", (1, 3, 8, 9, 16))
def test_gemv_every_activation(svdq: Library, m: int, dtype: str, activation: Activation) -> None:
    n = N_MULTIPLE * activation.rows_per_feature
    check(svdq, random_linear("w4a16", dtype, m, FEW // 16 * 16 + n, 192, 32, activation))
    check(svdq, random_linear("w4a16", dtype, m, SOME // 16 * 16 + n, 64, 16, activation))
    check(svdq, random_linear("w4a16", dtype, m, MANY // 16 * 16 + n, 64, 16, activation))
    check(svdq, random_linear("w4a16", dtype, m, MOST // 16 * 16 + n, 64, 16, activation))


@pytest.mark.parametrize("k", (64, 128, 192, 1024, 1088, 4160))
@pytest.mark.parametrize("m", (1, 7, 16))
def test_gemv_every_length_of_k(svdq: Library, m: int, k: int) -> None:
    """Fewer groups than warps, an odd number of groups, several chunks of x with a short last one."""
    check(svdq, random_linear("w4a16", "f16", m, 72, k, 32))


@pytest.mark.parametrize("m", (1, 16))
def test_gemv_many_rows_and_chunks(svdq: Library, m: int) -> None:
    check(svdq, random_linear("w4a16", "bf16", m, MANY, 1600, 128))


def test_gemv_largest_rank(svdq: Library) -> None:
    check(svdq, random_linear("w4a16", "f16", 11, 72, 64, 1024))


def assert_replays_equal(graph: torch.cuda.CUDAGraph, calls: list[LinearCall], want: list[Array], times: int) -> None:
    """The captured calls write every element, with these bits, at each replay over poisoned memory."""
    for _ in range(times):
        for call in calls:
            call.y.fill_(float("nan"))
            call.workspace.inside.fill_(255)
        graph.replay()
        for call, expected in zip(calls, want, strict=True):
            assert_same_bits(result(call), expected)


@pytest.mark.parametrize("n", (FEW, SOME, MANY, MOST))
def test_gemv_repeats_in_one_graph_are_bit_identical(svdq: Library, n: int) -> None:
    """gemm starts before quantize has ended: a hundred linears back to back, on four operands in turn."""
    import torch

    linears = [random_linear("w4a16", "bf16", m, n, 256, 64, seed=m) for m in (1, 4, 16, 2)]
    want = [run(svdq, linear) for linear in linears]
    calls, graph = [bind(svdq, linear) for linear in linears], torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    with torch.cuda.graph(graph):
        for _ in range(25):
            for call in calls:
                assert call.launch() == OK
    assert_replays_equal(graph, calls, want, times=4)


@pytest.mark.parametrize("n", (1024, SOME, MANY))
def test_gemv_reads_what_the_one_before_has_written(svdq: Library, n: int) -> None:
    """Every kernel starts before the one before it has ended; each linear's x is the y before it, NaN until then."""
    import torch

    ranks = (0, 32, 0, 0, 32, 16)
    linears = [random_linear("w4a16", "bf16", 2, n if i % 2 else 1024, 1024, r, seed=i) for i, r in enumerate(ranks)]
    calls, graph = [bind(svdq, linear) for linear in linears], torch.cuda.CUDAGraph()
    for before, call in pairwise(calls):
        # Rows of y are n apart and those of x 1024, which makes no difference to what is tested.
        call.params.x = before.params.y
    for call in calls:
        assert call.launch() == OK
        torch.cuda.synchronize()
    want = [result(call) for call in calls]
    assert all(np.isfinite(y.astype(np.float32)).all() for y in want)
    with torch.cuda.graph(graph):
        for call in calls:
            assert call.launch() == OK
    assert_replays_equal(graph, calls, want, times=20)


def test_gemv_halves_equal_the_whole(svdq: Library) -> None:
    linear = random_linear("w4a16", "f16", 5, 200, 256, 32)
    halves = run(svdq, linear, "svdq_linear_quantize", "svdq_linear_gemm")
    np.testing.assert_array_equal(halves, run(svdq, linear))


@pytest.mark.parametrize("shift", (0.0, 0.25))
def test_gemv_equals_the_kernel_for_many_tokens(svdq: Library, shift: float) -> None:
    """The same row among 40 takes the tiled kernels: both follow one contract."""
    linear = random_linear("w4a16", "f16", 40, 136, 640, 32)
    linear.shift = shift
    many = run(svdq, linear).astype(np.float64)
    few = run(svdq, linear.with_x(linear.x[:16])).astype(np.float64)
    assert sqnr_db(many[:16], few) > 70


@pytest.mark.parametrize("bad", (np.nan, np.inf, -np.inf), ids=str)
@pytest.mark.parametrize("n", (FEW, SOME, MANY, MOST))
@pytest.mark.parametrize("dtype", DTYPES)
def test_gemv_non_finite_token_is_nan_and_others_are_untouched(svdq: Library, dtype: str, n: int, bad: float) -> None:
    for m, hit in ((1, [0]), (9, [8]), (16, [0, 5, 15])):
        linear = random_linear("w4a16", dtype, m, n, 1088, 32)
        clean = run(svdq, linear)
        x = linear.x.copy()
        for i, row in enumerate(hit):
            x[row, 1000 * (i % 2) + 31] = bad
        got = run(svdq, linear.with_x(x))
        assert_bad_rows_stay_alone(got, clean, hit)
