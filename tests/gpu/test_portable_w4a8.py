"""The w4a8 kernels of every other GPU, on a GPU that would take its own: the same contract, a second implementation."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_calls import Library

from svdq_trt.contract.formats import Activation
from tests.harness.calls import bind, result, run
from tests.harness.linears import assert_accurate, assert_bad_rows_stay_alone, assert_same_bits, random_linear

PORTABLE = "svdq_linear_portable"


@pytest.mark.parametrize("activation", (Activation.NONE, Activation.GEGLU, Activation.SWIGLU))
@pytest.mark.parametrize("m,n,k,r", ((1, 80, 64, 16), (129, 208, 448, 32), (50, 640, 640, 144), (300, 272, 1024, 0)))
@pytest.mark.parametrize("dtype", ("f16", "bf16"))
def test_portable_w4a8_matches_reference(
    svdq: Library, dtype: str, m: int, n: int, k: int, r: int, activation: Activation
) -> None:
    linear = random_linear("w4a8", dtype, m, n, k, r, activation)
    want, got = linear.reference(), run(svdq, linear, PORTABLE)
    assert_accurate(got, want, dtype)


def test_portable_w4a8_bad_rows_stay_alone(svdq: Library) -> None:
    linear = random_linear("w4a8", "bf16", 70, 136, 320, 32)
    x = linear.x.copy()
    x[3, 7], x[69, 319] = np.nan, np.inf
    good = run(svdq, linear, PORTABLE)
    got = run(svdq, linear.with_x(x), PORTABLE)
    assert_bad_rows_stay_alone(got, good, [3, 69])


def test_portable_w4a8_is_deterministic(svdq: Library) -> None:
    call = bind(svdq, random_linear("w4a8", "f16", 129, 264, 640, 32))
    call.run(PORTABLE)
    first = result(call)
    for _ in range(20):
        call.workspace.inside.fill_(0xFF)
        call.run(PORTABLE)
        assert_same_bits(result(call), first)
