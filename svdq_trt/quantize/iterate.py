"""Alternating low-rank fit and rounding: each works on what the other left.

L_t = SVD_R(W_s - Q_{t-1}),   Q_t = RTN(W_s - L_t),   with Q_0 from a plain SVD. Source: SVDQuant's code
(deepcompressor/calib/lowrank.py), which runs up to 100 of these and stops at the first that is worse.
"""

from __future__ import annotations

import torch
from torch import Tensor

from svdq_trt.contract.formats import Format
from svdq_trt.quantize.lowrank import top_singular
from svdq_trt.quantize.split import Split, Tokens


def iterate(
    w: Tensor, split: Split, tokens: Tokens, fmt: Format, act_dtype: torch.dtype, steps: int, power_iterations: int
) -> Split:
    """The best of at most `steps` alternations that start at `split`; `split` itself when none is better.

    Args:
        w: [N, K] f32, not smoothed. tokens: tokens on which "better" is measured, activations quantized.
        power_iterations: those of each SVD, see lowrank.top_singular.
    """
    if not split.up.shape[1]:
        return split
    best, best_error = split, tokens.error(split)
    smoothed = w / split.act_mul
    for _ in range(steps):
        u, v = top_singular(smoothed - best.rounded(), split.up.shape[1], power_iterations)
        trial = best.with_factors(u, v, act_dtype).with_rounding(w, fmt, act_dtype)
        error = tokens.error(trial)
        if error >= best_error:
            break
        best, best_error = trial, error
    return best
