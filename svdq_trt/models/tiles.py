"""A picture that is larger than an autoencoder's engine takes, by overlapping tiles."""

from __future__ import annotations

import math
from collections.abc import Callable
from fractions import Fraction

import torch
from torch import Tensor

OVERLAP = 0.25  # of neighbouring tiles, at least


def by_tiles(run: Callable[[Tensor], Tensor], x: Tensor, sides: tuple[int, int], step: int) -> Tensor:
    """`run` of x [B, C, H, W] tile by tile, faded into each other where they overlap.

    All tiles have the full sides, also at a picture's edge: an autoencoder normalizes over what it sees, so that a
    narrow tile comes out in other colours. diffusers' own tiles are as narrow as what is left.

    Args:
        run: tiles [B, C, h, w] to [B, D, h * s, w * s] for some s, which may be below 1.
        sides: of a tile, in the unit of x. step: tiles begin at multiples of it, of which all sizes are too.
    """
    height, width = (min(side, size) for side, size in zip(sides, x.shape[2:], strict=True))
    total = weights = torch.empty(0)
    for top in starts(x.shape[2], height, step):
        for left in starts(x.shape[3], width, step):
            tile = run(x[:, :, top : top + height, left : left + width])
            scale, weight = Fraction(tile.shape[2], height), _weights(tile)
            if not total.numel():
                sizes = [int(size * scale) for size in x.shape[2:]]
                total, weights = weight.new_zeros(*tile.shape[:2], *sizes), weight.new_zeros(sizes)
            rows, columns = (
                slice(int(at * scale), int(at * scale) + size)
                for at, size in zip((top, left), tile.shape[2:], strict=True)
            )
            total[:, :, rows, columns] += weight * tile
            weights[rows, columns] += weight
    return (total / weights).to(tile.dtype)


def starts(size: int, side: int, step: int) -> list[int]:
    """Where tiles of `side` begin in `size`, evenly, the first and the last at an edge; `step`: see by_tiles."""
    most = max(step, int(side * (1 - OVERLAP)) // step * step)  # from one to the next
    count = 1 + math.ceil((size - side) / most)
    return [(size - side) * i // max(count - 1, 1) // step * step for i in range(count)]


def _weights(tile: Tensor) -> Tensor:
    """Of its pixels [h, w]: less towards the edges, as far as the neighbour reaches at least."""
    ramps = []
    for size in tile.shape[2:]:
        place = torch.arange(1, size + 1, dtype=torch.float32, device=tile.device)
        ramps.append(torch.minimum(place, place.flip(0)).clamp(max=max(1, size * OVERLAP)))
    return ramps[0][:, None] * ramps[1]
