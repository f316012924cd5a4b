"""Function bodies, activation side: x̂ -> code · stored scale, as svdq_trt.contract.numerics.fake_quantize_act."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from svdq_export.bodies.build import Body
from svdq_trt.contract.formats import FP4_MAX, FP8_MAX, INT4, NVFP4, ZERO_GROUP_ABSMAX, Format


def quantize_act(b: Body, x_hat: ir.Value, like: ir.Value, fmt: Format, unsigned: ir.Value) -> ir.Value:
    """Quantize and dequantize x̂.

    Args:
        b: the body under construction.
        x_hat: [..., K] f32, values of the act dtype.
        like: a tensor of the act dtype.
        fmt: the format; w4a16 returns x̂.
        unsigned: scalar f32, 1 for u4 codes, else 0 (int4 only).

    Returns:
        [..., K] f32. A group with NaN or Inf gives garbage here; the caller marks the row.
    """
    if fmt.act_group is None:
        return x_hat
    v = _grouped(b, x_hat, fmt.act_group) if fmt.act_group else x_hat
    absmax = b("ReduceMax", b("Abs", v), b.ints(-1), keepdims=1)
    is_zero = b("Less", absmax, ZERO_GROUP_ABSMAX)
    scale = b("Where", is_zero, 1.0, b("Mul", absmax, _inv_qmax(b, fmt, unsigned)))
    if fmt is NVFP4:
        scale = b("Min", scale, FP8_MAX)
    # ONNX Runtime divides a *scalar* one through an approximate reciprocal, an ulp off: enough to break ties.
    ones = b("Expand", 1.0, b("Shape", scale))
    scaled = b("Mul", b("Where", is_zero, 0.0, v), b("Div", ones, scale))
    if fmt is NVFP4:
        quantized = b("Mul", _round_e2m1(b, scaled), _round_e4m3(b, scale))
    elif fmt is INT4:
        low = b("Mul", b("Sub", unsigned, 1.0), 7.0)  # -7, or 0
        high = b("Add", b("Mul", unsigned, 8.0), 7.0)  # 7, or 15
        stored = b.to_f32(b("CastLike", scale, like))
        quantized = b("Mul", _clip(b, b("Round", scaled), low, high), stored)
    else:
        quantized = b("Mul", _clip(b, b("Round", scaled), -127.0, 127.0), scale)
    return b("Reshape", quantized, b("Shape", x_hat)) if fmt.act_group else quantized


def _grouped(b: Body, x: ir.Value, group: int) -> ir.Value:
    """[..., K] -> [..., K/G, G] for any rank and dynamic dimensions, empty ones too (so no -1)."""
    groups = b("Div", b("Shape", x, start=-1), b.ints(group))
    return b("Reshape", x, b("Concat", b("Shape", x, start=0, end=-1), groups, b.ints(group), axis=0))


def _inv_qmax(b: Body, fmt: Format, unsigned: ir.Value) -> ir.Value:
    """fp32(1/qmax), the constant that the kernels multiply with."""

    def inv(qmax: float) -> float:
        return float(np.float32(1) / np.float32(qmax))

    if fmt is INT4:
        return b("Where", b("Greater", unsigned, 0.5), inv(15), inv(7))
    return b.constant(inv(FP4_MAX if fmt is NVFP4 else 127))


def _clip(b: Body, v: ir.Value, low: ir.Value | float, high: ir.Value | float) -> ir.Value:
    return b("Min", b("Max", v, low), high)


def _round_e2m1(b: Body, v: ir.Value) -> ir.Value:
    """Nearest e2m1 value, ties to even, saturating at ±6; the step is 0.5 below 2, 1 below 4, else 2."""
    c = _clip(b, v, -FP4_MAX, FP4_MAX)
    a = b("Abs", c)
    step = b("Where", b("Less", a, 2.0), 0.5, b("Where", b("Less", a, 4.0), 1.0, 2.0))
    return b("Mul", b("Round", b("Div", c, step)), step)


def _round_e4m3(b: Body, s: ir.Value) -> ir.Value:
    """Nearest e4m3 of 0 <= s <= 448, ties to even.

    The distance of neighbours is 2^-9 for s < 2^-5 and doubles with each binade above. It is found by four
    compares with powers of two, halving the range of exponents each time: exact, where a logarithm is not.
    """
    rest, step = s, b.constant(2.0**-9)
    for bit in (8, 4, 2, 1):
        factor = b("Where", b("Less", rest, 2.0 ** (bit - 6)), 1.0, 2.0**bit)
        rest, step = b("Div", rest, factor), b("Mul", step, factor)
    return b("Mul", b("Round", b("Div", s, step)), step)
