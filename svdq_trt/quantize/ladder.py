"""Improvements on the plain SVDQuant split, rung by rung: iterations, scale search, GPTQ, refit.

A quarter of the tokens is held out. Every rung is fitted on the others and kept only where it lowers the error on
the held-out ones, so no rung can make a layer worse than the one below it, as far as these tokens tell.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from svdq_trt.contract.formats import Format
from svdq_trt.contract.sqnr import decibels
from svdq_trt.quantize.gptq import curvature, damping, gptq, refit
from svdq_trt.quantize.iterate import iterate
from svdq_trt.quantize.preset import Preset
from svdq_trt.quantize.scales import importance
from svdq_trt.quantize.split import Split, Tokens

MIN_TOKENS = 32  # below this, nothing is fitted: fewer than 8 held-out tokens say nothing
_EVERY = 4  # every fourth token is held out; they come sorted by sample, so all samples are on both sides


class Rung(NamedTuple):
    """One attempt: its name, its SQNR on held-out tokens, and whether it was kept."""

    name: str
    sqnr_db: float
    kept: bool


def climb(
    w: Tensor, split: Split, x: Tensor, y: Tensor, bias: Tensor, fmt: Format, act_dtype: torch.dtype, preset: Preset
) -> tuple[Split, list[Rung]]:
    """Improve `split` by the preset's rungs.

    Args:
        w: [N, K] f32, not smoothed. x: [T, K] f32 tokens, y = x Wᵀ [T, N]. bias: [N] f32.

    Returns:
        the best split, and every attempt in order, the first being `split` itself; no attempts where the preset
        has none, T < MIN_TOKENS or y is 0.
    """
    if not (preset.iterations or preset.scales or preset.gptq or preset.refit) or len(x) < MIN_TOKENS:
        return split, []
    held = torch.arange(len(x), device=x.device) % _EVERY == _EVERY - 1
    fit = Tokens(x[~held], y[~held], split.act_mul, fmt, act_dtype, split.coding, bias)
    judge = Tokens(x[held], y[held], split.act_mul, fmt, act_dtype, split.coding, bias)
    best, best_error = split, judge.error(split)
    if not judge.y.any() or not math.isfinite(best_error):  # nothing to judge by, or overflow, which the caller refuses
        return split, []
    rungs = [Rung("svd", decibels(best_error), True)]

    def consider(name: str, trial: Split) -> bool:
        nonlocal best, best_error
        error = judge.error(trial)
        kept = error < best_error
        rungs.append(Rung(name, decibels(error), kept))
        if kept:
            best, best_error = trial, error
        return kept

    if preset.iterations:
        power = preset.search_power_iterations
        consider("iterations", iterate(w, best, fit, fmt, act_dtype, preset.iterations, power))
    h = importance(fit.smoothed) if preset.scales else None
    if h is not None and not consider("scales", best.with_rounding(w, fmt, act_dtype, h)):
        h = None
    has_rank = bool(split.up.shape[1])
    for factor in preset.dampings if preset.gptq else ():
        d = damping(fit.smoothed, factor)
        curve = curvature(fit.smoothed, d)
        for _ in range(preset.rounds):
            trial = gptq(w, best, curve, fmt, act_dtype, h)
            consider("gptq", trial)
            if not (preset.refit and has_rank) or not consider("refit", refit(w, trial, fit.smoothed, d, act_dtype)):
                break  # the low-rank part is as it was: another round would give the same codes
    if preset.refit and has_rank and not any(rung.kept for rung in rungs if rung.name == "refit"):
        d = damping(fit.smoothed)
        consider("refit", refit(w, best, fit.smoothed, d, act_dtype))
    return best, rungs
