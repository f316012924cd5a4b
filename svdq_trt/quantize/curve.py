"""What rank buys in one node: its output error for every rank, from a few cheap trials.

Letters: N output features, K input features, R rank, T tokens.

The factors of every rank are the first rows of one SVD of the smoothed weight, so a whole curve costs one SVD, and one
rounding of some rows per rank. Only plain rounding is tried: the rungs above it (ladder.py) lower the curve as a whole.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from svdq_trt.contract.formats import R_MULTIPLE, Format
from svdq_trt.contract.ops import CONSTANTS
from svdq_trt.quantize.lowrank import Seen, top_singular
from svdq_trt.quantize.preset import PRESETS
from svdq_trt.quantize.smooth import act_multiplier, candidates
from svdq_trt.quantize.split import Coding, Tokens, codings, split_weight, spread

MAX_RANK = 128
_SEARCH_RANKS = (0, 16, 32, 64, 128)  # the exponents depend on R, mostly where it is small
_GRIDS = PRESETS["fast"].grids  # its smoothing candidates
_SEARCH_ROWS, _ROWS, _TOKENS = 256, 512, 256
_POWER_ITERATIONS = 2


def ranks_of(n: int, k: int, most: int = MAX_RANK) -> list[int]:
    """The ranks a node [N, K] may have: multiples of 16 from 0 to `most`, none above min(N, K)."""
    return list(range(0, min(most, n, k) + 1, R_MULTIPLE))


def node_bytes(fmt: Format, n: int, k: int, rank: int) -> int:
    """Bytes of a node's constant inputs."""
    return sum(math.prod(t.shape_of(fmt, n, k, rank)) * t.dtype_of(fmt).itemsize for t in CONSTANTS)


class _Smoothing(NamedTuple):
    """How x is smoothed and coded."""

    coding: Coding
    alpha: float
    beta: float


class _Layer(NamedTuple):
    """What a curve is of: weight [N, K], tokens [T, K] and the absmax [K] of each, f32 on one device."""

    w: Tensor
    x: Tensor
    x_absmax: Tensor
    w_absmax: Tensor
    format: Format
    act_dtype: torch.dtype

    def multiplier(self, at: _Smoothing) -> Tensor:
        """[K]: act_mul."""
        return act_multiplier(
            self.x_absmax + at.coding.shift, self.w_absmax, at.alpha, at.beta, self.format, self.act_dtype
        )


def error_curve(
    w: Tensor,
    x: Tensor,
    x_absmax: Tensor,
    fmt: Format,
    act_dtype: torch.dtype,
    ranks: Sequence[int],
    act_shift: float = 0.0,
) -> list[float]:
    """Squared error of the node's output over the energy of the wanted one, for each of `ranks`.

    Smoothing, and signed or unsigned codes, are searched at some of the ranks and on a few rows, as quantize_group does
    at one; the other ranks take what was found at the nearest of them. A layer whose output is 0 has no error.

    Args:
        w: [N, K] weight, members stacked; the work is done on its device. x: [T, K] tokens. x_absmax: [K].
        ranks: ascending. act_shift: as of quantize_group.
    """
    w, x = w.float(), spread(x, _TOKENS).to(w.device).float()
    layer = _Layer(w, x, x_absmax.to(w.device).float(), w.abs().amax(0), fmt, act_dtype)
    searched = [r for r in ranks if r in _SEARCH_RANKS or r == ranks[-1]]
    found = _search(layer, act_shift, searched)
    curve: dict[int, float] = {}
    for smoothing in dict.fromkeys(found.values()):
        mine = [r for r in ranks if found[_nearest(searched, r)] == smoothing]
        curve |= _errors(layer, _ROWS, smoothing, mine)
    return [curve[r] for r in ranks]


def _nearest(searched: Sequence[int], rank: int) -> int:
    """The nearest rank, or the larger of two equally near: with R = 0 the best exponents are others."""
    return min(searched, key=lambda at: (abs(at - rank), -at))


def _search(layer: _Layer, act_shift: float, ranks: list[int]) -> dict[int, _Smoothing]:
    """The best smoothing at each of `ranks`, on _SEARCH_ROWS rows as if they were the layer."""
    some = layer._replace(w=spread(layer.w, _SEARCH_ROWS))
    best: dict[int, tuple[float, _Smoothing]] = {}
    for coding, (alpha, beta) in itertools.product(codings(layer.format, act_shift), candidates(_GRIDS)):
        smoothing = _Smoothing(coding, alpha, beta)
        for rank, error in _errors(some, _SEARCH_ROWS, smoothing, ranks).items():
            if rank not in best or error <= best[rank][0]:  # a tie goes to the later candidate, as in quantize_group
                best[rank] = error, smoothing
    return {rank: smoothing for rank, (_, smoothing) in best.items()}


def _errors(layer: _Layer, most: int, smoothing: _Smoothing, ranks: list[int]) -> dict[int, float]:
    """Relative error per rank under one smoothing: the SVD is of all rows, rounding and error of at most `most`."""
    w, x, fmt, act_dtype = layer.w, layer.x, layer.format, layer.act_dtype
    rows, mul = spread(w, most), layer.multiplier(smoothing)
    tokens = Tokens(x, x @ rows.T, mul, fmt, act_dtype, smoothing.coding)
    none = split_weight(rows, mul, Seen(x, layer.x_absmax), fmt, 0, act_dtype, 0, smoothing.coding)
    u, v = top_singular(w / mul, max(ranks), _POWER_ITERATIONS) if max(ranks) else (w.new_zeros(len(w), 0), none.down)
    u = spread(u, most)
    found = {}
    for rank in ranks:
        split = none
        if rank:
            split = none.with_factors(u[:, :rank], v[:rank], act_dtype).with_rounding(rows, fmt, act_dtype)
        found[rank] = tokens.error(split) if tokens.y.any() else 0.0
    return found
