"""The reference linear: fp64 over exact codes. Slow, obvious, no options beyond the op contract."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from svdq_trt.contract.formats import Activation, Format
from svdq_trt.contract.reference.quant import Array, QuantWeight, dequantize_weight, quantize_act, smooth

_erf = np.vectorize(math.erf, otypes=[np.float64])


def gelu(v: NDArray[np.float64]) -> NDArray[np.float64]:
    """Exact GELU, fp64."""
    return 0.5 * v * (1.0 + _erf(v / math.sqrt(2.0)))


def activate(v: NDArray[np.float64], activation: Activation) -> NDArray[np.float64]:
    """Apply the op's activation to [M, N] fp64; a gated one halves N."""
    if activation.gated:
        half = v.shape[1] // 2
        return v[:, :half] * activate(v[:, half:], activation.function)
    if activation is Activation.GELU:
        return gelu(v)
    if activation is Activation.GELU_TANH:
        return 0.5 * v * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (v + 0.044715 * v**3)))
    if activation is Activation.SILU:
        return v / (1.0 + np.exp(-v))
    return v


def linear_unrounded(
    x: Array,
    qw: QuantWeight,
    act_mul: Array,
    lora_down: Array,
    lora_up: Array,
    bias: Array,
    fmt: Format,
    activation: Activation = Activation.NONE,
    act_unsigned: bool = False,
    act_shift: float = 0.0,
) -> NDArray[np.float64]:
    """Output [M, N_out] before its one rounding to x's dtype. Arguments as in svdq_trt/contract/ops.py; x is [M, K]."""
    with np.errstate(invalid="ignore", over="ignore"):
        xq = quantize_act(smooth(x, act_mul, act_shift), fmt, act_unsigned)
        acc = xq.dequantize() @ dequantize_weight(qw, fmt).T
        t = (x.astype(np.float64) @ lora_down.astype(np.float64).T).astype(x.dtype)  # rounded once
        acc += t.astype(np.float64) @ lora_up.astype(np.float64).T + bias.astype(np.float64)
        y = activate(acc, activation)
    bad = ~np.isfinite(x.astype(np.float64)).all(1)
    y[bad] = np.nan
    return y


def round_output(y: NDArray[np.float64], dtype: np.dtype) -> Array:
    """One rounding to x's dtype; float16 saturates at ±65504, NaN stays NaN."""
    if dtype == np.float16:
        return np.clip(y, -65504.0, 65504.0).astype(dtype)
    return y.astype(dtype)
