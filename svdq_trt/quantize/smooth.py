"""Smoothing: per-channel scales that trade activation outliers for weight outliers.

s_j = xspan_j^alpha / wspan_j^beta,   x̂ = x / s,   Ŵ = W · s.   Stored as act_mul = 1/s in the act dtype.
Source: SVDQuant, arXiv 2411.05007, section 4.1; candidate list as DeepCompressor.
"""

from __future__ import annotations

import torch
from torch import Tensor

from svdq_trt.contract.formats import F16_MAX, FP4_MAX, FP8_MAX, NVFP4, Format

#: nvfp4 activations have e4m3 group scales and no tensor scale: place the largest calibrated group scale two
#: powers of two below 448, which leaves headroom above and 15 normal binades below.
_NVFP4_TOP = FP4_MAX * FP8_MAX / 4
_S_LIMITS = (2.0**-12, 2.0**12)
_F16_HEADROOM = F16_MAX / 16
_MUL_LIMITS = (2.0**-14, 2.0**14)  # normal numbers of f16


def candidates(grids: int) -> list[tuple[float, float]]:
    """(0, 0), then (a, 0), then (a, 1 - a), a = i/grids: 2·grids - 1 pairs of (alpha, beta)."""
    steps = [i / grids for i in range(1, grids)]
    return [(0.0, 0.0), *((a, 0.0) for a in steps), *((a, 1.0 - a) for a in steps)]


def act_multiplier(
    x_absmax: Tensor, w_absmax: Tensor, alpha: float, beta: float, fmt: Format, act_dtype: torch.dtype
) -> Tensor:
    """act_mul [K] f32, every value exactly representable in act_dtype, finite and positive.

    Args:
        x_absmax: [K] f32, max |x| per channel over the calibration tokens.
        w_absmax: [K] f32, max |W| per column over all rows of the group.
        alpha, beta: exponents; (0, 0) is no smoothing.
        fmt: nvfp4 also gets a power-of-two factor that centres the e4m3 scale range.
        act_dtype: torch.float16 or torch.bfloat16.
    """
    s = x_absmax.clamp_min(1e-8).pow(alpha) / w_absmax.clamp_min(1e-8).pow(beta)
    dead = (x_absmax == 0) | (w_absmax == 0)
    s = torch.where(dead | ~s.isfinite(), 1.0, s)
    s = (s / s.log().mean().exp()).clamp(*_S_LIMITS)  # a common factor is a free choice: geometric mean 1
    if fmt is NVFP4:
        top = (x_absmax / s).max()
        if top > 0:
            s = s * torch.exp2(torch.ceil(torch.log2(top / _NVFP4_TOP)))
    mul = (1.0 / s).clamp(*_MUL_LIMITS)
    if act_dtype == torch.float16:  # x̂ must not overflow where x is finite, nor for x beyond what was calibrated
        mul = torch.minimum(mul, _F16_HEADROOM / x_absmax.clamp_min(1e-8))
    return mul.to(act_dtype).float()
