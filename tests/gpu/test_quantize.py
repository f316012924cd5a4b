"""Activation codes and scales, bit for bit, whatever order the kernels keep them in.

With an identity weight y[m, k] = code · scale, one product: equal outputs mean equal codes and scales.
"""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest
from kernel_calls import Library

from svdq_trt.contract.formats import ACT_SHIFT, NVFP4, W4A8, Activation, Format
from svdq_trt.contract.reference.quant import Array, QuantWeight, pack_nibbles, quantize_act, smooth
from tests.harness.calls import run
from tests.harness.linears import NUMPY_DTYPE, Linear, assert_bad_rows_stay_alone, random_linear, split_name

NAMES = ("int4", "int4u", "w4a8", "nvfp4", "w4a16")


def identity_weight(fmt: Format, k: int, dtype: str) -> QuantWeight:
    code = 2 if fmt is NVFP4 else 1  # 1.0 in e2m1, 1 in s4
    codes = np.eye(k, dtype=np.uint8) * code
    if fmt is NVFP4:
        one = np.array(1.0, ml_dtypes.float8_e4m3fn).view(np.int8)
        scale: Array = np.full((k // 64, k, 4), one, np.int8)
    elif fmt is W4A8:
        scale = np.ones((k // 64, k), np.int8)
    else:
        scale = np.ones((k // 64, k), NUMPY_DTYPE[dtype])
    return QuantWeight(pack_nibbles(codes), scale, np.ones(k, np.float32))


def inputs(kind: str, m: int, k: int, dtype: str) -> Array:
    rng = np.random.default_rng(7)
    if kind == "gauss":
        x = rng.standard_normal((m, k)) * np.exp(rng.standard_normal((m, 1)) * 2)
    elif kind == "ties":  # every quotient lands on, or next to, a boundary between two codes
        x = rng.integers(-30, 31, (m, k)) / 4 * 2.0 ** rng.integers(-3, 4, (m, 1))
    elif kind == "zeros":  # whole groups of zeros, of both signs, and of values below the smallest scale
        x = rng.standard_normal((m, k))
        x[:, 16:64] = 0.0
        x[1::3, : k // 2] = -0.0
        x[2::3] *= 1e-7 if dtype == "f16" else 1e-37
        x[3::4] *= 1e-4 if dtype == "f16" else 1e-2
    else:  # large: near the end of the dtype
        x = rng.uniform(-6e4, 6e4, (m, k))
    return x.astype(NUMPY_DTYPE[dtype])


@pytest.mark.parametrize("kind", ("gauss", "ties", "zeros", "large"))
@pytest.mark.parametrize("dtype", ("f16", "bf16"))
@pytest.mark.parametrize("name", NAMES)
def test_codes_and_scales_equal_reference(svdq: Library, name: str, dtype: str, kind: str) -> None:
    fmt, unsigned = split_name(name)
    m, k, t = 67, 320, NUMPY_DTYPE[dtype]
    x = inputs(kind, m, k, dtype)
    rng = np.random.default_rng(3)
    act_mul = (np.ones(k) if kind in ("ties", "large") else rng.uniform(0.3, 1.7, k)).astype(t)
    shift = ACT_SHIFT[Activation.GELU] if unsigned and kind != "ties" else 0.0
    nothing = np.zeros((0, k), t), np.zeros((k, 0), t), np.zeros(k, t)
    linear = Linear(fmt, dtype, Activation.NONE, x, identity_weight(fmt, k, dtype), act_mul, *nothing, unsigned, shift)
    with np.errstate(over="ignore"):
        exact = quantize_act(smooth(x, act_mul, shift), fmt, unsigned).dequantize()
        want = exact.astype(np.float32).astype(t)
    if dtype == "f16":
        want = np.clip(want, -65504, 65504).astype(t)
    got = run(svdq, linear)
    np.testing.assert_array_equal(got.astype(np.float64), want.astype(np.float64))


@pytest.mark.parametrize("bad", (np.nan, np.inf, -np.inf), ids=str)
@pytest.mark.parametrize("r", (0, 32))
@pytest.mark.parametrize("dtype", ("f16", "bf16"))
@pytest.mark.parametrize("name", NAMES)
def test_non_finite_row_is_nan_and_others_are_untouched(
    svdq: Library, name: str, dtype: str, r: int, bad: float
) -> None:
    rows = (0, 9, 34, 49)
    for activation, m in (
        (Activation.NONE, 50),
        (Activation.GEGLU, 50),
        (Activation.SWIGLU, 50),
        (Activation.SILU, 10),
    ):
        linear = random_linear(name, dtype, m, 80, 192, r, activation)
        clean = run(svdq, linear)
        assert np.isfinite(clean.astype(np.float64)).all()
        x = linear.x.copy()
        hit = [row for row in rows if row < m]
        for i, row in enumerate(hit):
            x[row, 50 * i + 3] = bad
        got = run(svdq, linear.with_x(x))
        assert_bad_rows_stay_alone(got, clean, hit)
