"""The reference quantizers: slow, obvious, one per format. Everything else is tested against them.

Arrays are numpy. "act dtype" is numpy.float16 or ml_dtypes.bfloat16. Activation arithmetic is IEEE fp32, one
operation at a time, so that a kernel can match codes and scales bit for bit; weights are rounded in fp64.

Numerics, activations:
    x̂      = round_act((fp32(x) + act_shift) · fp32(act_mul))          act_shift only where it is not 0
    absmax  = max |x̂| over the group (or the row, w4a8)
    s       = absmax · fp32(1/qmax)              stored rounded: act dtype (int4), fp32 (w4a8), e4m3 (nvfp4)
    code    = clip(rint(x̂ · (1 / s)), qmin, qmax) from the unrounded s; ties to even
A group with absmax < 2^-120 is a zero group: codes 0, s = 1. A group with NaN or Inf: codes 0, s = NaN.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import DTypeLike, NDArray

from svdq_trt.contract.formats import (
    FP4_MAX,
    FP4_VALUES,
    FP8_MAX,
    INT4,
    NVFP4,
    W4A8,
    W4A8_Z_MAX,
    W4A16,
    ZERO_GROUP_ABSMAX,
    Format,
)

Array = NDArray[Any]
F32 = np.float32


@dataclass(frozen=True)
class QuantWeight:
    """A quantized weight in the op contract's layout.

    Attributes:
        qweight: [N, K/2] int8, low nibble = even k.
        wscale: [K/64, N] act dtype (int4, w4a16) or int8 z (w4a8); [K/64, N, 4] int8 e4m3 bytes (nvfp4).
        wscale2: [N] f32.
    """

    qweight: Array
    wscale: Array
    wscale2: Array


@dataclass(frozen=True)
class QuantAct:
    """A quantized activation: `values` [M, K] fp64 code values and `scale` [M, K/G] fp64 (w4a8: [M, 1])."""

    values: NDArray[np.float64]
    scale: NDArray[np.float64]

    def dequantize(self) -> NDArray[np.float64]:
        """[M, K] fp64."""
        g = self.values.shape[1] // self.scale.shape[1]
        return self.values * np.repeat(self.scale, g, axis=1)


# ---- nibbles ---------------------------------------------------------------------------------------------------


def pack_nibbles(codes: Array) -> NDArray[np.int8]:
    """[N, K] codes (any int, low 4 bits used) -> [N, K/2] int8, low nibble = even k."""
    c = codes.astype(np.uint8) & 0xF
    return (c[:, 0::2] | (c[:, 1::2] << 4)).view(np.int8)


def unpack_nibbles(packed: Array) -> NDArray[np.uint8]:
    """[N, K/2] int8 -> [N, K] uint8 in 0..15."""
    p = packed.view(np.uint8)
    out = np.empty((p.shape[0], 2 * p.shape[1]), np.uint8)
    out[:, 0::2], out[:, 1::2] = p & 0xF, p >> 4
    return out


def s4_values(packed: Array) -> NDArray[np.float64]:
    """Two's-complement 4-bit codes -> [N, K] fp64."""
    c = unpack_nibbles(packed).astype(np.int64)
    return np.where(c > 7, c - 16, c).astype(np.float64)


# ---- fp4 / fp8 -------------------------------------------------------------------------------------------------


def round_e2m1(v: Array) -> NDArray[np.uint8]:
    """Nearest e2m1 code of each value, ties to the even code, saturating at 6. Sign in bit 3."""
    a = np.abs(np.asarray(v, np.float64))
    table = np.array(FP4_VALUES)
    mid = (table[1:] + table[:-1]) / 2  # boundaries between neighbouring codes
    code = np.zeros(a.shape, np.uint8)
    for i, m in enumerate(mid):  # at the boundary i|i+1 a tie goes to the even one
        code = np.where((a > m) | ((a == m) & ((i + 1) % 2 == 0)), i + 1, code).astype(np.uint8)
    return code | np.where(np.signbit(np.asarray(v, np.float64)) & (code > 0), 8, 0).astype(np.uint8)


def e2m1_values(packed: Array) -> NDArray[np.float64]:
    """e2m1 codes packed as nibbles -> [N, K] fp64."""
    c = unpack_nibbles(packed)
    return np.where(c >= 8, -1.0, 1.0) * np.array(FP4_VALUES)[c & 7]


def round_e4m3(v: Array) -> NDArray[np.float64]:
    """Non-negative values -> nearest e4m3 (saturating at 448), as fp64."""
    clipped = np.minimum(np.asarray(v, F32), F32(FP8_MAX))
    return clipped.astype(ml_dtypes.float8_e4m3fn).astype(np.float64)


def e4m3_bytes(v: Array) -> NDArray[np.int8]:
    """Non-negative values -> e4m3 bytes as int8."""
    clipped = np.minimum(np.asarray(v, F32), F32(FP8_MAX))
    return clipped.astype(ml_dtypes.float8_e4m3fn).view(np.int8)


def e4m3_values(b: Array) -> NDArray[np.float64]:
    """e4m3 bytes (int8) -> fp64."""
    return np.ascontiguousarray(b).view(ml_dtypes.float8_e4m3fn).astype(np.float64)


# ---- weights ---------------------------------------------------------------------------------------------------


def quantize_weight(w: Array, fmt: Format, act_dtype: DTypeLike = np.float16) -> QuantWeight:
    """Round [N, K] to 4-bit groups along K (absmax, round to nearest even).

    int4, w4a16:  s = act(absmax/7), q = rint(w/s).
    w4a8:         s_n = f32(max_g absmax/(7·18)); z = clip(rint(absmax/7/s_n), 1, 18); q = rint(w/(s_n·z)).
    nvfp4:        S = f32(max absmax/6/448); s = e4m3(absmax/6/S); q = e2m1(w/(S·s)).
    """
    w = np.asarray(w, np.float64)
    n, k = w.shape
    g = fmt.weight_group
    absmax = np.abs(w.reshape(n, k // g, g)).max(-1)  # [N, K/G]
    ones = np.ones(n, F32)
    if fmt in (INT4, W4A16):
        s = (absmax / 7).astype(act_dtype)
        s = np.where(s.astype(np.float64) == 0, np.ones_like(s), s)
        q = _rint_clip(w, s.astype(np.float64), g)
        return QuantWeight(pack_nibbles(q), np.ascontiguousarray(s.T), ones)
    if fmt is W4A8:
        s_n = (absmax.max(1) / (7 * W4A8_Z_MAX)).astype(F32)
        s_n = np.where(s_n == 0, F32(1), s_n)
        z = np.clip(np.rint(absmax / 7 / s_n[:, None].astype(np.float64)), 1, W4A8_Z_MAX)
        q = _rint_clip(w, z * s_n[:, None].astype(np.float64), g)
        return QuantWeight(pack_nibbles(q), np.ascontiguousarray(z.T.astype(np.int8)), s_n)
    assert fmt is NVFP4
    top = absmax.max()
    s_t = F32(top / FP4_MAX / FP8_MAX) if top > 0 else F32(1)
    s = round_e4m3(absmax / FP4_MAX / np.float64(s_t))
    step = np.repeat(s * np.float64(s_t), g, axis=1)
    codes = round_e2m1(np.divide(w, step, out=np.zeros_like(w), where=step > 0))
    bytes_ = e4m3_bytes(s).reshape(n, k // 64, 4).transpose(1, 0, 2)
    return QuantWeight(pack_nibbles(codes), np.ascontiguousarray(bytes_), ones * s_t)


def dequantize_weight(qw: QuantWeight, fmt: Format) -> NDArray[np.float64]:
    """[N, K] fp64: exactly the values the stored codes and scales mean."""
    values = e2m1_values(qw.qweight) if fmt is NVFP4 else s4_values(qw.qweight)
    n = values.shape[0]
    s = e4m3_values(qw.wscale).transpose(1, 0, 2).reshape(n, -1) if fmt is NVFP4 else qw.wscale.astype(np.float64).T
    return values * np.repeat(s, fmt.weight_group, axis=1) * qw.wscale2.astype(np.float64)[:, None]


def _rint_clip(w: Array, s: Array, g: int) -> NDArray[np.int8]:
    return np.clip(np.rint(w / np.repeat(s, g, axis=1)), -7, 7).astype(np.int8)


# ---- activations -----------------------------------------------------------------------------------------------


def smooth(x: Array, act_mul: Array, act_shift: float = 0.0) -> Array:
    """x̂ [M, K] in x's dtype: one fp32 add (if any), one fp32 multiply, one rounding."""
    xf = x.astype(F32)
    if act_shift:
        xf = xf + F32(act_shift)
    with np.errstate(over="ignore", invalid="ignore"):
        return (xf * act_mul.astype(F32)).astype(x.dtype)


def quantize_act(x_hat: Array, fmt: Format, unsigned: bool = False) -> QuantAct:
    """Quantize x̂ [M, K] (act dtype) as the format says. w4a16: returned as it is, scale 1."""
    m, k = x_hat.shape
    if fmt.act_group is None:
        return QuantAct(x_hat.astype(np.float64), np.ones((m, 1)))
    g = fmt.act_group or k
    v = x_hat.astype(F32).reshape(m, k // g, g)
    finite = np.isfinite(v).all(-1)
    absmax = np.where(finite, np.abs(np.where(np.isfinite(v), v, 0)).max(-1), 0).astype(F32)
    zero = absmax < F32(ZERO_GROUP_ABSMAX)
    qmax = {INT4: 15.0 if unsigned else 7.0, W4A8: 127.0, NVFP4: FP4_MAX}[fmt]
    s = np.where(zero, F32(1), absmax * (F32(1) / F32(qmax)))
    if fmt is NVFP4:
        s = np.minimum(s, F32(FP8_MAX))
    scaled = np.where((finite & ~zero)[..., None], v, 0) * (F32(1) / s)[..., None]
    if fmt is NVFP4:
        codes = round_e2m1(scaled.reshape(m, k))
        values = np.where(codes >= 8, -1.0, 1.0) * np.array(FP4_VALUES)[codes & 7]
        stored = round_e4m3(s)
    else:
        lo = 0.0 if unsigned else -qmax
        values = np.clip(np.rint(scaled), lo, qmax).astype(np.float64).reshape(m, k)
        stored = s.astype(x_hat.dtype).astype(np.float64) if fmt is INT4 else s.astype(np.float64)
    return QuantAct(values, np.where(finite, stored, np.nan))
