"""The w4a8 kernels of every other GPU, on a GPU that would take its own: the same contract, a second implementation."""

from __future__ import annotations

import numpy as np
import pytest
from svdq_harness import (
    OK,
    Call,
    Library,
    assert_accurate,
    assert_bad_rows_stay_alone,
    assert_same_bits,
    random_linear,
)

from svdq_trt.contract.formats import Activation

PORTABLE = "svdq_linear_portable"


def portable(call: Call) -> np.ndarray:
    """y of the portable kernels."""
    assert call.launch(entry=PORTABLE) == OK
    return call.result()


@pytest.mark.parametrize("activation", (Activation.NONE, Activation.GEGLU))
@pytest.mark.parametrize("m,n,k,r", ((1, 80, 64, 16), (129, 208, 448, 32), (50, 640, 640, 144), (300, 272, 1024, 0)))
@pytest.mark.parametrize("dtype", ("f16", "bf16"))
def test_portable_w4a8_matches_reference(
    svdq: Library, dtype: str, m: int, n: int, k: int, r: int, activation: Activation
) -> None:
    linear = random_linear("w4a8", dtype, m, n, k, r, activation)
    want, got = linear.reference(), portable(Call(svdq, linear))
    assert_accurate(got, want, dtype)


def test_portable_w4a8_bad_rows_stay_alone(svdq: Library) -> None:
    linear = random_linear("w4a8", "bf16", 70, 136, 320, 32)
    x = linear.x.copy()
    x[3, 7], x[69, 319] = np.nan, np.inf
    good = portable(Call(svdq, linear))
    got = portable(Call(svdq, linear.with_x(x)))
    assert_bad_rows_stay_alone(got, good, [3, 69])


def test_portable_w4a8_is_deterministic(svdq: Library) -> None:
    call = Call(svdq, random_linear("w4a8", "f16", 129, 264, 640, 32))
    first = portable(call).copy()
    for _ in range(20):
        call.workspace[256:-256].fill_(0xFF)
        assert_same_bits(portable(call), first)
