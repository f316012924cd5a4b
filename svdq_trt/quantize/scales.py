"""Group scales by search: a group's largest weight may be clipped where that serves the others.

Each group tries a few spans, multiples of its absmax, and keeps the one with the least

    sum_k h_k (w_k - step * code_k)^2,     h_k the mean square of the smoothed input's channel k.

The second level (w4a8: s_n; nvfp4: the tensor scale) stays as absmax sets it: searched too, it brought at most 0.02 dB.
Letters: N output features, K input features, G group size.
"""

from __future__ import annotations

import torch
from torch import Tensor

from svdq_trt.contract import numerics
from svdq_trt.contract.formats import NVFP4, Format

#: Near absmax: GPTQ moves weights beyond their group's absmax, and clipping further brought nothing there.
_INTEGER = (1.06, 0.94, 0.88)
#: e2m1 codes are uneven, so larger spans are worth a try: at 1.5 the largest weight takes the code 4 instead of 6.
_E2M1 = (1.5, 1.25, 1.12, 0.94, 0.88)
_FLOOR = 0.05  # of the mean h: a channel that calibration hardly saw still counts


def importance(x_hat: Tensor) -> Tensor:
    """[K]: h of x̂ [T, K]."""
    h = x_hat.square().mean(0)
    return h + _FLOOR * h.mean()


def search_scales(w: Tensor, h: Tensor, fmt: Format, act_dtype: torch.dtype) -> numerics.WeightScales:
    """Scales of a weight [N, K] f32 for codes rounded to nearest, by the importance h [K] of its columns."""
    groups = numerics.grouped(w, fmt.weight_group)
    weights = numerics.grouped(h, fmt.weight_group)

    def error(span: Tensor) -> Tensor:
        step = numerics.scales_of(span, absmax, fmt, act_dtype).step[..., None]
        return ((numerics.round_weight(groups, step, fmt) * step - groups).square_() * weights).sum(-1)

    absmax = groups.abs().amax(-1)
    best, least = absmax, error(absmax)
    for ratio in _E2M1 if fmt is NVFP4 else _INTEGER:
        got = error(ratio * absmax)
        best, least = torch.where(got < least, ratio * absmax, best), torch.minimum(got, least)
    return numerics.scales_of(best, absmax, fmt, act_dtype)
