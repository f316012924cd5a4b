"""Scenes with captions: one or two shapes, with their sizes, colours and places in words, 128 x 128 RGB.

A scene is a row of numbers: where (an entry of PLACES), then size, colour and shape of each of two objects; where only
one is placed, the second's are zero. Drawing is as in scenes.py: in one batch, from a seed, without a copy from the
host. `read` is the inverse: it measures in a picture what its caption says.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from trained import scenes

SIDE = 128
SIZES = {"small": 0.22, "large": 0.38}  # radius, of a picture that reaches from -1 to 1
COLOURS = ("red", "yellow", "green", "cyan", "blue", "magenta")  # evenly around the circle
SHAPES = scenes.SHAPES
#: what stands between two objects, or behind one -> their middles, (u, v)
BETWEEN = {
    "left of": ((-0.48, 0.0), (0.48, 0.0)),
    "right of": ((0.48, 0.0), (-0.48, 0.0)),
    "above": ((0.0, -0.48), (0.0, 0.48)),
    "below": ((0.0, 0.48), (0.0, -0.48)),
}
BEHIND = {
    "on the left": (-0.48, 0.0),
    "on the right": (0.48, 0.0),
    "at the top": (0.0, -0.48),
    "at the bottom": (0.0, 0.48),
    "in the middle": (0.0, 0.0),
}
PLACES = (*BETWEEN, *BEHIND)
WORDS = tuple(dict.fromkeys(" ".join(("a", *SIZES, *COLOURS, *SHAPES, *PLACES)).split()))
FIELDS = (len(PLACES), *(len(SIZES), len(COLOURS), len(SHAPES)) * 2)  # how many values each number of a row has
ANGLE, JITTER = 0.15, 0.1  # most tilt in radians, and distance from the place along either axis
OUTLINE, NOWHERE = 0.05, (9.0, 9.0)  # width of a style's outline; where the second object is of scenes that have one
COLOURFUL, SAME = 0.25, 0.5  # least spread of red, green and blue in an object; least overlap with what it is


def rows(count: int, device: torch.device | str = "cpu", rng: torch.Generator | None = None) -> Tensor:
    """Random scenes [count, 7]; with `rng` None the device's own generator is used."""
    found = [torch.randint(most, (count,), device=device, generator=rng) for most in FIELDS]
    two = found[0] < len(BETWEEN)
    return torch.stack((*found[:4], *(field * two for field in found[4:])), 1)


def is_held_out(scene: Tensor) -> Tensor:
    """[B, 7] -> bool [B]: about one scene in 16, which no training sees."""
    factors = torch.tensor((5, 3, 7, 11, 13, 9, 2), device=scene.device)
    return (scene * factors).sum(1) % 16 == 0


def drawn_from(count: int, held_out: bool, seed: int) -> Tensor:
    """Random scenes [count, 7] of those that training sees, or of those that it does not."""
    rng, found = torch.Generator().manual_seed(seed), torch.empty(0, len(FIELDS), dtype=torch.long)
    while len(found) < count:
        more = rows(count, rng=rng)
        found = torch.cat((found, more[is_held_out(more) == held_out]))
    return found[:count]


def caption(scene: list[int]) -> str:
    """Its words: "a small red disc left of a large blue square"."""
    sizes, place = tuple(SIZES), PLACES[scene[0]]
    first, second = (
        f"a {sizes[size]} {COLOURS[colour]} {SHAPES[shape]}" for size, colour, shape in (scene[1:4], scene[4:])
    )
    return f"{first} {place} {second}" if place in BETWEEN else f"{first} {place}"


def draw(scene: Tensor, rng: torch.Generator | None = None, ink: bool = False) -> Tensor:
    """[B, 7] -> pictures [B, 3, SIDE, SIDE] in [-1, 1]; tilt, light, ground and the exact place are random.

    Args:
        rng: None for the device's own generator. ink: in another style, outlined on white paper.
    """
    device, b = scene.device, len(scene)

    def rand(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(b, *shape, generator=rng, device=device) * (high - low) + low

    axis, places, radii = _tables(SIDE, device)
    mix = ((axis[:, None] + 1) / 2).expand(SIDE, SIDE)
    picture = rand(0.05, 0.35, 1, 1, 1) * mix + rand(0.05, 0.35, 1, 1, 1) * (1 - mix) + rand(0, 0.1, 3, 1, 1)
    if ink:
        picture = 0.9 + 0.1 * picture
    for i in range(2):
        size, colour, shape = scene[:, 1 + 3 * i : 4 + 3 * i].unbind(1)
        middle, radius = places[scene[:, 0], i] + rand(-JITTER, JITTER, 2), radii[size][:, None, None]
        p, q = _turned(axis, middle, rand(-ANGLE, ANGLE, 1, 1), radius)
        index = shape[:, None, None, None].expand(-1, 1, SIDE, SIDE)
        distance = scenes.distances(p, q).gather(1, index) * radius[:, None]
        light = 0.75 + 0.25 * torch.sin(2 * (p + rand(-1, 1, 1, 1)))[:, None]
        hue = colour[:, None] / len(COLOURS) + rand(-0.015, 0.015, 1)
        paint = scenes.rgb_of(hue, 0.95)[:, :, None, None] * light
        for reach, layer in ((OUTLINE, 0.05), (0.0, paint)) if ink else ((0.0, paint),):
            inside = torch.sigmoid((reach - distance) * SIDE)  # one pixel of soft edge
            picture = inside * layer + (1 - inside) * picture
    return picture * 2 - 1


class Shown(NamedTuple):
    """What pictures show of what their captions say, each [B] from 0 to 1: the share of a picture's objects."""

    colours: Tensor
    shapes: Tensor
    sizes: Tensor
    whole: Tensor  # all of it, at its place


def read(pictures: Tensor, scene: Tensor) -> Shown:
    """Measure pictures [B, 3, SIDE, SIDE] in [-1, 1] against their scenes [B, 7].

    An object is what is colourful in its half of the picture, or in all of it where it is alone. Its colour is the
    nearest to its mean; its shape and size are those whose drawing at its middle overlaps it most, at least by half;
    alone, its place is the nearest to its middle.
    """
    axis, places, radii = _tables(SIDE, pictures.device)
    rgb = (pictures + 1) / 2
    colourful = rgb.amax(1) - rgb.amin(1) > COLOURFUL
    two = scene[:, 0] < len(BETWEEN)
    right = []
    for i in range(2):
        size, colour, shape = scene[:, 1 + 3 * i : 4 + 3 * i].unbind(1)
        want = places[scene[:, 0], i]
        side = want[:, 0, None, None] * axis + want[:, 1, None, None] * axis[:, None]  # above zero in its half
        mask = (colourful & ((side > 0) | ~two[:, None, None])).float()
        area = mask.sum((1, 2)).clamp_min(1)
        middle = torch.stack(((mask * axis).sum((1, 2)), (mask * axis[:, None]).sum((1, 2))), 1) / area[:, None]
        mean = (rgb * mask[:, None]).sum((2, 3)) / area[:, None]
        wheel = scenes.rgb_of(torch.arange(len(COLOURS), device=mean.device)[:, None] / len(COLOURS), 1.0)
        overlaps = _overlaps(mask, middle, axis, radii)
        best = overlaps.flatten(1).max(1)
        found = best.values > SAME
        alone = places[len(BETWEEN) :, 0]
        placed = two | ((middle[:, None] - alone).norm(dim=2).argmin(1) == scene[:, 0] - len(BETWEEN))
        right.append(
            torch.stack(
                (
                    found & ((mean @ wheel.T).argmax(1) == colour),
                    found & (best.indices % len(SHAPES) == shape),
                    found & (best.indices // len(SHAPES) == size),
                    placed,
                )
            )
        )
    first, second = right
    both = torch.where(two, (first.float() + second.float()) / 2, first.float())
    return Shown(both[0], both[1], both[2], (both == 1).all(0).float())


def _overlaps(mask: Tensor, middle: Tensor, axis: Tensor, radii: Tensor) -> Tensor:
    """Objects [B, H, W] against every size and shape at their middles [B, 2], at the best angle: IoU [B, 2, SHAPES]."""
    found = []
    for radius in radii:
        angles = []
        for angle in (-ANGLE / 2, 0.0, ANGLE / 2):
            p, q = _turned(axis, middle, torch.full((len(mask), 1, 1), angle, device=mask.device), radius)
            drawn = (scenes.distances(p, q) < 0).float()
            both = (drawn * mask[:, None]).sum((2, 3))
            angles.append(both / (drawn.sum((2, 3)) + mask.sum((1, 2))[:, None] - both))
        found.append(torch.stack(angles).amax(0))
    return torch.stack(found, 1)


def _turned(axis: Tensor, middle: Tensor, angle: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Coordinates [B, H, W] around middles [B, 2], turned by [B, 1, 1], in units of the radius."""
    u, v = axis[None, None, :] - middle[:, 0, None, None], axis[None, :, None] - middle[:, 1, None, None]
    return (angle.cos() * u + angle.sin() * v) / radius, (angle.cos() * v - angle.sin() * u) / radius


@functools.cache
def _tables(side: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Pixels along an axis [side], middles [PLACES, 2, 2], radii [SIZES]."""
    middles = [*BETWEEN.values(), *((middle, NOWHERE) for middle in BEHIND.values())]
    axis = torch.linspace(-1, 1, side, device=device)
    return axis, torch.tensor(middles, device=device), torch.tensor(list(SIZES.values()), device=device)
