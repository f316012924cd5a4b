"""What families share when they make up inputs."""

from __future__ import annotations

import torch
from torch import nn


def smooth_image(shape: tuple[int, ...], rng: torch.Generator) -> torch.Tensor:
    """[B, C, H, W] f32: one normal value per 8 x 8 latent pixels, interpolated."""
    b, c, h, w = shape
    coarse = torch.randn((b, c, max(h // 8, 1), max(w // 8, 1)), generator=rng)
    return nn.functional.interpolate(coarse, size=(h, w), mode="bilinear")
