"""The pictures that the small models learn: one shaded shape on a dim background, 32 x 32, four channels.

Channels are red, green, blue and coverage, all in [-1, 1]; a class is a shape and a hue. Everything is drawn by
signed distances, in one batch, from a seed, and without a copy from the host, so that a CUDA graph can hold it.
"""

from __future__ import annotations

import functools
import math

import torch
from torch import Tensor

SIZE = 32
SHAPES = ("disc", "square", "bar", "ring", "cross", "triangle")
HUES = ("red", "amber", "lime", "green", "cyan", "blue", "violet", "pink")  # evenly around the circle
CLASSES = len(SHAPES) * len(HUES)


def draw(labels: Tensor, rng: torch.Generator | None = None) -> Tensor:
    """[B] class numbers -> pictures [B, 4, SIZE, SIZE] in [-1, 1]; place, size, tilt, light and ground are random.

    With `rng` None, the device's own generator is used.
    """
    device, b = labels.device, len(labels)

    def rand(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(b, *shape, generator=rng, device=device) * (high - low) + low

    axis = torch.linspace(-1, 1, SIZE, device=device)
    v, u = torch.meshgrid(axis, axis, indexing="ij")
    radius, angle = rand(0.45, 0.65, 1, 1), rand(-0.3, 0.3, 1, 1)
    u, v = u - rand(-0.3, 0.3, 1, 1), v - rand(-0.3, 0.3, 1, 1)
    p = (angle.cos() * u + angle.sin() * v) / radius
    q = (angle.cos() * v - angle.sin() * u) / radius
    index = (labels // len(HUES))[:, None, None, None].expand(-1, 1, SIZE, SIZE)
    inside = torch.sigmoid(-distances(p, q).gather(1, index) * radius[:, None] * SIZE)  # one pixel of soft edge
    light = 0.75 + 0.25 * torch.sin(2 * (p + rand(-1, 1, 1, 1)))
    hue = ((labels % len(HUES)) / len(HUES))[:, None] + rand(-0.02, 0.02, 1)
    object_ = rgb_of(hue, 0.95)[:, :, None, None] * light[:, None]
    mix = ((axis[:, None] + 1) / 2).expand(SIZE, SIZE)
    ground = rand(0.05, 0.45, 1, 1, 1) * mix + rand(0.05, 0.45, 1, 1, 1) * (1 - mix) + rand(0, 0.12, 3, 1, 1)
    rgb = inside * object_ + (1 - inside) * ground
    return torch.cat([rgb, inside], 1) * 2 - 1


def distances(p: Tensor, q: Tensor) -> Tensor:
    """[B, H, W] coordinates in units of the radius -> [B, SHAPES, H, W] signed distances, negative inside."""
    a, b, r = p.abs(), q.abs(), (p * p + q * q).sqrt()
    found = (
        r - 1,
        torch.maximum(a, b) - 0.85,
        torch.maximum(a - 1, b - 0.35),
        (r - 0.72).abs() - 0.25,
        torch.minimum(torch.maximum(a - 0.3, b - 1), torch.maximum(b - 0.3, a - 1)),
        torch.maximum(0.866 * a + 0.5 * q, -q) - 0.55,
    )
    return torch.stack(found, 1)


def rgb_of(hue: Tensor, value: float) -> Tensor:
    """[B, 1] hue in turns -> [B, 3] saturated colour in [0, 1]."""
    phase = torch.arange(3, device=hue.device) / 3
    return value * (0.5 + 0.5 * torch.cos(2 * math.pi * (hue - phase)))


def embedding(labels: Tensor, tokens: int, width: int) -> Tensor:
    """[B, tokens, width]: half the tokens encode the shape, half the hue; some channels are large, as in CLIP's."""
    return _table(tokens, width, labels.device)[labels]


@functools.cache
def _table(tokens: int, width: int, device: torch.device) -> Tensor:
    """[CLASSES, tokens, width], the same on every device."""
    rng = torch.Generator().manual_seed(77)
    half = tokens // 2
    shape = torch.randn(len(SHAPES), half, width, generator=rng)
    hue = torch.randn(len(HUES), tokens - half, width, generator=rng)
    large = torch.randperm(width, generator=rng)[: max(width // 64, 1)]
    table = torch.cat([shape[:, None].expand(-1, len(HUES), -1, -1), hue[None].expand(len(SHAPES), -1, -1, -1)], 2)
    table = table.flatten(0, 1).clone()
    table[..., large] *= 6
    return table.to(device)
