"""The whole linear against the fp64 reference: the kernel error alone, because codes and scales are equal."""

from __future__ import annotations

import numpy as np
import pytest
from kernel_calls import Library

from svdq_trt.contract.formats import Activation
from tests.harness.calls import run
from tests.harness.linears import Linear, assert_accurate, random_linear

NAMES = ("int4", "int4u", "w4a8", "nvfp4", "w4a16")
DTYPES = ("f16", "bf16")


def check(lib: Library, linear: Linear) -> None:
    want, got = linear.reference(), run(lib, linear)
    assert_accurate(got, want, linear.dtype)


# Ragged N, K of one block and of an odd number of blocks, one and many tiles both ways.
SHAPES = ((72, 64), (200, 448), (264, 1024), (640, 640))


@pytest.mark.parametrize("n,k", SHAPES, ids=lambda v: str(v))
@pytest.mark.parametrize("m", (1, 17, 33, 129))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_linear_matches_reference(svdq: Library, name: str, dtype: str, m: int, n: int, k: int) -> None:
    check(svdq, random_linear(name, dtype, m, n, k, r=32, bias=m != 17))


@pytest.mark.parametrize("activation", list(Activation), ids=lambda a: a.value or "none")
@pytest.mark.parametrize("r", (0, 16, 32, 64, 128, 144))
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", NAMES)
def test_linear_every_rank_and_activation(svdq: Library, name: str, dtype: str, r: int, activation: Activation) -> None:
    check(svdq, random_linear(name, dtype, 50, 208, 128, r, activation, bias=r != 16))
    check(svdq, random_linear(name, dtype, 5, 80, 192, r, activation))


@pytest.mark.parametrize("r", (16, 48))
@pytest.mark.parametrize("name", NAMES)
def test_linear_many_tokens_matches_reference(svdq: Library, name: str, r: int) -> None:
    """Several bands of tiles, the last one ragged, and the row tiling of quantize for many tokens."""
    check(svdq, random_linear(name, "bf16", 4123, 264, 192, r))


@pytest.mark.parametrize("name", NAMES)
def test_linear_largest_rank_matches_reference(svdq: Library, name: str) -> None:
    check(svdq, random_linear(name, "f16", 40, 72, 64, 1024))


@pytest.mark.parametrize("name", NAMES)
def test_linear_second_weight_scale_is_applied(svdq: Library, name: str) -> None:
    linear = random_linear(name, "f16", 40, 136, 128, 16)
    linear.weight.wscale2[:] *= np.linspace(0.5, 2, 136, dtype=np.float32)
    check(svdq, linear)


@pytest.mark.parametrize("name", NAMES)
def test_linear_f16_output_saturates(svdq: Library, name: str) -> None:
    linear = random_linear(name, "f16", 9, 72, 64, 16)
    linear.weight.wscale2[:] *= np.float32(1e6)
    got = run(svdq, linear).astype(np.float64)
    assert np.isfinite(got).all()
    assert np.abs(got).max() == 65504
