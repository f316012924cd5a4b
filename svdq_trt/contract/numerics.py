"""The formats in torch: vectorized twins of svdq_trt/contract/reference, used by the quantizer and the CPU op.

Same contract, same names, any device. Where the reference works in fp64 on weights, this works in fp32
and may differ in a tie; activation codes and scales are the same IEEE fp32 steps and match bit for bit.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from svdq_trt.contract.formats import (
    F16_MAX,
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

CPU = torch.device("cpu")
E4M3 = torch.float8_e4m3fn


class PackedWeight(NamedTuple):
    """A weight as it is stored: those of the op's inputs (svdq_trt/contract/ops.py) that hold its codes and scales."""

    qweight: Tensor
    wscale: Tensor
    wscale2: Tensor


def pack_nibbles(codes: Tensor) -> Tensor:
    """[N, K] integer codes, low four bits used -> [N, K/2] int8, low nibble = even k."""
    c = codes.to(torch.uint8) & 0xF
    return (c[:, 0::2] | (c[:, 1::2] << 4)).view(torch.int8)


def unpack_nibbles(packed: Tensor) -> Tensor:
    """[N, K/2] int8 -> [N, K] uint8 in 0..15."""
    p = packed.view(torch.uint8)
    return torch.stack((p & 0xF, p >> 4), dim=-1).flatten(-2)


def round_e2m1(v: Tensor) -> Tensor:
    """Values f32 -> the nearest e2m1 value (not its code), ties to even, saturating at ±6."""
    c = v.clamp(-FP4_MAX, FP4_MAX)
    # Neighbours at magnitude a are 0.5 apart below 2, 1 below 4, else 2: half the power of two at or below max(a, 1),
    # which is a's exponent field alone.
    step = (c.abs().clamp_(min=1).view(torch.int32) & 0x7F800000).view(torch.float32).mul_(0.5)
    return c.div_(step).round_().mul_(step)


def e2m1_codes(values: Tensor) -> Tensor:
    """e2m1 values -> codes 0..15 (sign in bit 3, no negative zero)."""
    table = torch.tensor(FP4_VALUES, dtype=values.dtype, device=values.device)
    code = torch.searchsorted(table, values.abs().contiguous()).to(torch.uint8)
    return code | ((values < 0).to(torch.uint8) << 3)


def e2m1_values(codes: Tensor) -> Tensor:
    """Codes 0..15 -> f32."""
    table = torch.tensor([*FP4_VALUES, *(-v for v in FP4_VALUES)], device=codes.device)
    return torch.take(table, codes.long())


def grouped(w: Tensor, g: int) -> Tensor:
    """[..., K] -> [..., K/G, G], a view."""
    view: Tensor = w.unflatten(-1, (w.shape[-1] // g, g))
    return view


class WeightScales(NamedTuple):
    """The scales of a weight, chosen before any code is."""

    step: Tensor  # [N, K/G] f32: what one unit of a code is worth; nvfp4: 0 where the e4m3 scale underflows
    wscale: Tensor  # as stored, see PackedWeight
    wscale2: Tensor  # [N] f32


def weight_scales(w: Tensor, fmt: Format, act_dtype: torch.dtype = torch.float16) -> WeightScales:
    """Absmax scales of a weight [N, K] f32.

    See svdq_trt.contract.reference.quant.quantize_weight for the formulas.
    """
    absmax = grouped(w, fmt.weight_group).abs().amax(-1)
    return scales_of(absmax, absmax, fmt, act_dtype)


def scales_of(span: Tensor, absmax: Tensor, fmt: Format, act_dtype: torch.dtype) -> WeightScales:
    """Scales with which the largest code of a group stands for about `span`.

    Args:
        span: [N, K/G]. absmax: [N, K/G], sets the second level; with span = absmax these are absmax scales.
    """
    n = len(span)
    ones = torch.ones(n, device=span.device)
    if fmt in (INT4, W4A16):
        s = (span / 7).to(act_dtype)
        s = torch.where(s == 0, torch.ones_like(s), s)
        return WeightScales(s.float(), s.T.contiguous(), ones)
    if fmt is W4A8:
        s_n = absmax.amax(1) / (7 * W4A8_Z_MAX)
        s_n = torch.where(s_n == 0, 1.0, s_n)
        z = torch.round(span / 7 / s_n[:, None]).clamp_(1, W4A8_Z_MAX)
        return WeightScales(z * s_n[:, None], z.T.to(torch.int8).contiguous(), s_n)
    assert fmt is NVFP4
    top = absmax.max()
    s_t = torch.where(top > 0, top / FP4_MAX / FP8_MAX, 1.0)
    s8 = (span / FP4_MAX / s_t).clamp(max=FP8_MAX).to(E4M3)
    wscale = s8.view(torch.int8).unflatten(1, (-1, 4)).transpose(0, 1).contiguous()
    return WeightScales(s8.float() * s_t, wscale, ones * s_t)


def round_weight(w: Tensor, step: Tensor, fmt: Format) -> Tensor:
    """Code values (f32 integers in -7..7, or e2m1 values) nearest to w / step, ties to even; shapes broadcast."""
    if fmt is NVFP4:
        return round_e2m1(w * torch.where(step > 0, 1 / step, 0.0))
    return torch.round(w / step).clamp_(-7, 7)


def pack_weight(values: Tensor, scales: WeightScales, fmt: Format) -> PackedWeight:
    """Code values [N, K] from round_weight, and the scales they were rounded with, in the stored layout."""
    codes = e2m1_codes(values) if fmt is NVFP4 else values.to(torch.int8).view(torch.uint8)
    return PackedWeight(pack_nibbles(codes), scales.wscale, scales.wscale2)


def quantize_weight(w: Tensor, fmt: Format, act_dtype: torch.dtype = torch.float16) -> PackedWeight:
    """Round a residual weight [N, K] f32 to 4-bit groups along K; absmax scales, ties to even.

    Tested against svdq_trt.contract.reference.quant.quantize_weight in tests/cpu/test_numerics.py.
    """
    scales = weight_scales(w, fmt, act_dtype)
    values = round_weight(grouped(w, fmt.weight_group), scales.step[..., None], fmt).flatten(1)
    return pack_weight(values, scales, fmt)


def dequantize_weight(qw: PackedWeight, fmt: Format) -> Tensor:
    """[N, K] f32: the values the stored codes and scales mean."""
    codes = unpack_nibbles(qw.qweight)
    n = codes.shape[0]
    if fmt is NVFP4:
        values = e2m1_values(codes)
        s = qw.wscale.view(E4M3).float().transpose(0, 1).reshape(n, -1)
    else:
        values = ((codes ^ 8).to(torch.int8) - 8).float()  # two's complement nibble
        s = qw.wscale.float().T
    scaled = grouped(values, fmt.weight_group) * (s * qw.wscale2[:, None])[..., None]
    return scaled.flatten(1)


def smooth(x: Tensor, act_mul: Tensor, act_shift: float = 0.0, act: torch.dtype | None = None) -> Tensor:
    """x̂ = round((x + act_shift) · act_mul) in the act dtype, by default x's; fp32 inside."""
    xf = x.float()
    if act_shift:
        xf = xf + act_shift
    return (xf * act_mul.float()).to(act or x.dtype)


def project_down(x: Tensor, lora_down: Tensor, act: torch.dtype | None = None) -> Tensor:
    """Low-rank inputs t = x · lora_downᵀ [M, R] f32, rounded once to the act dtype as the kernels do; default: x's."""
    return (x.float() @ lora_down.float().T).to(act or x.dtype).float()


def saturate(y: Tensor, act: torch.dtype) -> Tensor:
    """Y as its one rounding to the act dtype takes it: f16 ends at ±65504; NaN stays NaN."""
    return y.clamp(-F16_MAX, F16_MAX) if act == torch.float16 else y


def fake_quantize_act(x_hat: Tensor, fmt: Format, unsigned: bool = False) -> Tensor:
    """Quantize and dequantize x̂ [..., K]: f32 values code · stored scale; NaN for a group with NaN or Inf.

    w4a16 returns x̂ in f32 unchanged.
    """
    v = x_hat.float()
    if fmt.act_group is None:
        return v
    k = v.shape[-1]
    v = grouped(v, fmt.act_group or k)
    absmax = v.abs().amax(-1, keepdim=True)
    finite = absmax < torch.inf  # False for NaN too: amax propagates it
    zero = absmax < ZERO_GROUP_ABSMAX
    qmax = {"int4": 15.0 if unsigned else 7.0, "w4a8": 127.0, "nvfp4": FP4_MAX}[fmt.name]
    inv_qmax = torch.tensor(1.0) / torch.tensor(qmax)  # an fp32 constant, as in the kernels
    s = torch.where(zero, 1.0, absmax * inv_qmax.to(v.device))
    if fmt is NVFP4:
        s = s.clamp(max=FP8_MAX)
    scaled = torch.where(finite & ~zero, v * (1.0 / s), 0.0)
    if fmt is NVFP4:
        codes = round_e2m1(scaled)
        stored = torch.where(finite, s, 1.0).to(E4M3).float()
    else:
        codes = torch.round(scaled).clamp(0.0 if unsigned else -qmax, qmax)
        stored = s.to(x_hat.dtype).float() if fmt is INT4 else s
    return (codes * torch.where(finite, stored, torch.nan)).flatten(-2)
