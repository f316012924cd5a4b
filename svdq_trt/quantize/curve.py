"""What rank buys in one node: its output error for every rank, from a few cheap trials.

Letters: N output features, K input features, R rank, T tokens.

The factors of every rank are the first rows of one SVD of the smoothed weight, so a whole curve costs one SVD, and one
rounding of some rows per rank. Only plain rounding is tried: the rungs above it (ladder.py) lower the curve as a whole.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from svdq_trt.quantize.lowrank import top_singular
from svdq_trt.quantize.smooth import act_multiplier, candidates
from svdq_trt.quantize.split import Tokens, split_weight
from svdq_trt.spec.formats import R_MULTIPLE, Format
from svdq_trt.spec.ops import input_shapes

MAX_RANK = 128
_SEARCH_RANKS = (0, 16, 32, 64, 128)  # the exponents depend on R, mostly where it is small
_GRIDS = 4  # the smoothing candidates of the preset `fast`
_SEARCH_ROWS, _ROWS, _TOKENS = 256, 512, 256
_POWER_ITERATIONS = 2


def ranks_of(n: int, k: int, most: int = MAX_RANK) -> list[int]:
    """The ranks a node [N, K] may have: multiples of 16 from 0 to `most`, none above min(N, K)."""
    return list(range(0, min(most, n, k) + 1, R_MULTIPLE))


def node_bytes(fmt: Format, n: int, k: int, rank: int) -> int:
    """Bytes of a node's seven constant inputs."""
    wide = {"qweight": 1, "wscale": 2 if fmt.wscale_is_act_dtype else 1, "wscale2": 4}
    return sum(math.prod(shape) * wide.get(name, 2) for name, shape in input_shapes(fmt, n, k, rank).items())


def error_curve(
    w: Tensor, x: Tensor, x_absmax: Tensor, fmt: Format, act_dtype: torch.dtype, ranks: Sequence[int]
) -> list[float]:
    """Squared error of the node's output over the energy of the wanted one, for each of `ranks`.

    Smoothing is searched at some of the ranks and on a few rows, as quantize_group does at one; the other ranks take
    the exponents found at the nearest of them. A layer whose output is 0 has no error.

    Args:
        w: [N, K] weight, members stacked. x: [T, K] tokens. x_absmax: [K]. ranks: ascending.
    """
    w, x, x_absmax = w.float(), _spread(x, _TOKENS).float(), x_absmax.float()
    w_absmax = w.abs().amax(0)
    searched = [r for r in ranks if r in _SEARCH_RANKS or r == ranks[-1]]
    exponents = _search(w, x, x_absmax, w_absmax, fmt, act_dtype, searched)
    curve: dict[int, float] = {}
    for pair in dict.fromkeys(exponents.values()):
        mine = [r for r in ranks if exponents[_nearest(searched, r)] == pair]
        mul = act_multiplier(x_absmax, w_absmax, *pair, fmt, act_dtype)
        curve |= _errors(w, _ROWS, x, mul, fmt, act_dtype, mine)
    return [curve[r] for r in ranks]


def _nearest(searched: Sequence[int], rank: int) -> int:
    """Of two equally near the larger: without any low-rank part the best exponents are others."""
    return min(searched, key=lambda at: (abs(at - rank), -at))


def _search(
    w: Tensor, x: Tensor, x_absmax: Tensor, w_absmax: Tensor, fmt: Format, act_dtype: torch.dtype, ranks: list[int]
) -> dict[int, tuple[float, float]]:
    """The best (alpha, beta) at each of `ranks`, on _SEARCH_ROWS rows as if they were the layer."""
    rows = _spread(w, _SEARCH_ROWS)
    best: dict[int, tuple[float, tuple[float, float]]] = {}
    for pair in candidates(_GRIDS):
        mul = act_multiplier(x_absmax, w_absmax, *pair, fmt, act_dtype)
        for rank, error in _errors(rows, _SEARCH_ROWS, x, mul, fmt, act_dtype, ranks).items():
            if rank not in best or error <= best[rank][0]:  # a tie goes to the later candidate, as in quantize_group
                best[rank] = error, pair
    return {rank: pair for rank, (_, pair) in best.items()}


def _errors(
    w: Tensor, most: int, x: Tensor, mul: Tensor, fmt: Format, act_dtype: torch.dtype, ranks: list[int]
) -> dict[int, float]:
    """Relative error per rank under one smoothing: the SVD is of all rows, rounding and error of at most `most`."""
    rows = _spread(w, most)
    tokens = Tokens(x, x @ rows.T, mul, fmt, act_dtype)
    none = split_weight(rows, mul, fmt, 0, act_dtype, 0)
    u, v = top_singular(w / mul, max(ranks), _POWER_ITERATIONS) if max(ranks) else (w.new_zeros(len(w), 0), none.down)
    u = _spread(u, most)
    found = {}
    for rank in ranks:
        split = none
        if rank:
            split = none.with_factors(u[:, :rank], v[:rank], act_dtype).with_rounding(rows, fmt, act_dtype)
        found[rank] = tokens.error(split) if tokens.y.any() else 0.0
    return found


def _spread(t: Tensor, most: int) -> Tensor:
    """At most `most` rows of t, evenly spaced."""
    return t[:: -(-len(t) // most)].contiguous()
