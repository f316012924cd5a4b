"""Function bodies, weight side: codes and scales -> [N, K] f32, as svdq_trt.contract.numerics.dequantize_weight."""

from __future__ import annotations

import onnx_ir as ir

from svdq_export.bodies.build import Body
from svdq_trt.contract.formats import NVFP4, W4A8, Format


def dequantize_weight(b: Body, qweight: ir.Value, wscale: ir.Value, wscale2: ir.Value, fmt: Format) -> ir.Value:
    """[N, K/2] codes and their scales -> [N, K] f32 = code · (scale · wscale2)."""
    codes = _unpack(b, qweight)
    values = _e2m1(b, codes) if fmt is NVFP4 else _s4(b, codes)
    scale = b("Mul", _scales(b, wscale, fmt), b("Reshape", wscale2, b.ints(-1, 1, 1)))
    grouped = b("Reshape", values, b.ints(0, -1, fmt.weight_group))
    return b("Reshape", b("Mul", grouped, scale), b.ints(0, -1))


def _unpack(b: Body, packed: ir.Value) -> ir.Value:
    """[N, K/2] int8 -> [N, K] f32 in 0..15; the low nibble is the even k."""
    high, low = b.high_bits(b.unsigned_byte(packed), 16.0)
    last = b.ints(-1)
    pairs = b("Concat", b("Unsqueeze", low, last), b("Unsqueeze", high, last), axis=-1)
    return b("Reshape", pairs, b.ints(0, -1))


def _s4(b: Body, codes: ir.Value) -> ir.Value:
    """Two's-complement nibbles."""
    return b("Where", b("Greater", codes, 7.0), b("Sub", codes, 16.0), codes)


def _e2m1(b: Body, codes: ir.Value) -> ir.Value:
    """e2m1: 0 0.5 1 1.5 | 2 3 | 4 6 is m/2 | m-2 | 2m-8; bit 3 is the sign."""
    negative, m = b.high_bits(codes, 8.0)
    upper = b("Where", b("Less", m, 6.0), b("Sub", m, 2.0), b("Sub", b("Mul", m, 2.0), 8.0))
    magnitude = b("Where", b("Less", m, 4.0), b("Mul", m, 0.5), upper)
    return b("Mul", magnitude, b("Sub", 1.0, b("Mul", negative, 2.0)))


def _scales(b: Body, wscale: ir.Value, fmt: Format) -> ir.Value:
    """The stored group scales -> [N, K/G, 1] f32."""
    last = b.ints(-1)
    if fmt is NVFP4:  # [K/64, N, 4] bytes
        s = b("Transpose", _e4m3(b, wscale), perm=[1, 0, 2])
        return b("Reshape", s, b.ints(0, -1, 1))
    s = b.int8_to_f32(wscale) if fmt is W4A8 else b.to_f32(wscale)
    return b("Unsqueeze", b("Transpose", s, perm=[1, 0]), last)


def _e4m3(b: Body, scale_bytes: ir.Value) -> ir.Value:
    """e4m3 bytes -> f32: (mantissa/8 + [e > 0]) · 2^(max(e, 1) - 7), negated where bit 7 is set."""
    negative, magnitude = b.high_bits(b.unsigned_byte(scale_bytes), 128.0)
    e, m = b.high_bits(magnitude, 8.0)
    is_normal = b("Min", e, 1.0)
    significand = b("Add", b("Mul", m, 0.125), is_normal)
    power = b("Mul", _pow2(b, b("Max", e, 1.0)), 2.0**-7)
    return b("Mul", b("Mul", significand, power), b("Sub", 1.0, b("Mul", negative, 2.0)))


def _pow2(b: Body, e: ir.Value) -> ir.Value:
    """2^e for whole e in 0..15, one factor per bit: exact where Pow or Exp may not be."""
    power = None
    for bit in (8, 4, 2, 1):
        has, e = b.high_bits(e, float(bit))
        factor = b("Add", b("Mul", has, 2.0**bit - 1.0), 1.0)
        power = factor if power is None else b("Mul", power, factor)
    assert power is not None
    return power
