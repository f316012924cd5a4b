"""Tiles of a picture: what sees each pixel by itself gives the whole, and all tiles have their full size."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from svdq_trt.models.tiles import OVERLAP, by_tiles, starts


def enlarged(x):
    return F.interpolate(x, scale_factor=8)


def shrunk(x):
    return F.avg_pool2d(x, 8)


@pytest.mark.parametrize(
    ("run", "size", "sides", "step"),
    [
        (enlarged, (32, 32), (16, 16), 1),
        (enlarged, (7, 61), (16, 16), 1),  # lower than a tile
        (enlarged, (34, 18), (16, 12), 2),
        (shrunk, (136, 1032), (128, 64), 8),
        (shrunk, (144, 80), (64, 64), 16),
    ],
)
def test_pixel_by_pixel_tiles_are_the_whole(run, size, sides, step):
    x, shapes = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0)).half(), set()

    def counted(tile):
        shapes.add(tile.shape[2:])
        return run(tile)

    got = by_tiles(counted, x, sides, step)
    torch.testing.assert_close(got, run(x))
    assert got.dtype == x.dtype and shapes == {tuple(map(min, size, sides))}


@pytest.mark.parametrize("side,step", [(64, 1), (64, 2), (64, 16), (64, 32), (96, 16), (2, 1), (6, 1), (6, 2)])
@pytest.mark.parametrize("steps", [0, 1, 2, 3, 4, 9, 60])
def test_tiles_cover_everything_and_overlap(steps, side, step):
    size = side + steps * step
    at = starts(size, side, step)
    assert at[0] == 0 and at[-1] == size - side and all(begin % step == 0 for begin in at)
    assert all(after - before <= side * (1 - OVERLAP) for before, after in itertools.pairwise(at))
    assert len(at) == len(set(at))
    if side * (1 - OVERLAP) % step == 0:
        assert len(at) == 1 + -(-(size - side) // (side * (1 - OVERLAP))), "no more than it takes"


def test_a_tile_fades_into_its_neighbour():
    levels = iter((0.0, 1.0))
    got = by_tiles(lambda tile: torch.full_like(tile, next(levels)), torch.zeros(1, 1, 16, 28), (16, 16), 1)[0, 0]
    steps = got.diff(dim=1)
    assert torch.equal(got, got[:1].expand_as(got)) and got[0, 0] == 0 and got[0, -1] == 1
    assert (steps >= 0).all() and steps.max() < 0.25, "over the four columns that both have"
