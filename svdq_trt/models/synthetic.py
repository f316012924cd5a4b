"""Synthetic values of a model's inputs; a family's table assigns them to inputs.

All are f32 on the CPU and draw from the request's generator in a fixed order: equal seeds give equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

PATCH = 16  # pixels per side of one token of packed latents: 8 by the VAE, 2 by the packing


@dataclass(frozen=True)
class Request:
    """The request for one input, which a Fill makes.

    Attributes:
        shape: shape of the tensor.
        sizes: batch, height and width in pixels, tokens, frames, images.
        noise: the step's share of noise in [0, 1].
        rng: where random numbers come from; its seed is another for each input. seed: the same for all of them.
    """

    shape: tuple[int, ...]
    sizes: Mapping[str, int]
    noise: float
    rng: torch.Generator
    seed: int = 0


Fill = Callable[[Request], Tensor]


def normal(r: Request) -> Tensor:
    """Standard normal values."""
    return torch.randn(r.shape, generator=r.rng)


def timestep_to_999(r: Request) -> Tensor:
    """The nearest of the timesteps 0 to 999."""
    return torch.full(r.shape, float(round(999 * r.noise)))


def smooth_image(shape: tuple[int, ...], rng: torch.Generator, step: int = 8) -> Tensor:
    """[B, C, H, W]: one normal value per step x step pixels of the latent, interpolated."""
    b, c, h, w = shape
    coarse = torch.randn((b, c, max(h // step, 1), max(w // step, 1)), generator=rng)
    return nn.functional.interpolate(coarse, size=(h, w), mode="bilinear")


def flow_latents(r: Request) -> Tensor:
    """[B, C, H, W]: a smooth image and noise, mixed as in flow matching."""
    value = normal(r)
    return r.noise * value + (1 - r.noise) * smooth_image(r.shape, r.rng)


def token_grid(r: Request) -> tuple[int, int]:
    """Rows and columns of image tokens."""
    return r.sizes["height"] // PATCH, r.sizes["width"] // PATCH


def packed_latents(r: Request) -> Tensor:
    """[B, images * rows * columns, C]: a smooth image and noise, mixed as in flow matching; then clean images."""
    (batch, _, channels), (rows, columns) = r.shape, token_grid(r)
    value = torch.randn((batch, rows * columns, channels), generator=r.rng)
    new, *references = (
        smooth_image((batch, channels, rows, columns), r.rng, step=4).flatten(2).transpose(1, 2)
        for _ in range(r.sizes["images"])
    )
    return torch.cat((r.noise * value + (1 - r.noise) * new, *references), dim=1)


def diffusion_latents(r: Request) -> Tensor:
    """[B, C, H, W]: a smooth image and noise, mixed to unit variance, as by schedulers for noise prediction."""
    value = normal(r)
    return math.sqrt(r.noise) * value + math.sqrt(1 - r.noise) * smooth_image(r.shape, r.rng)


def large_channels(channels: int) -> Tensor:
    """Indices of the text channels that are large, one in 256; the same ones for every prompt."""
    fixed = torch.Generator().manual_seed(0)
    return torch.randperm(channels, generator=fixed)[: max(channels // 256, 1)]


def t5_text(r: Request) -> Tensor:
    """[B, T, K], like the output of T5 or a language model: small values and some large channels."""
    value = normal(r) * 0.2
    value[..., large_channels(r.shape[-1])] *= 20.0
    return value


def padding_mask(r: Request) -> Tensor:
    """[B, T]: 1 for text, 0 for padding, which is the last third."""
    mask = torch.ones(r.shape)
    mask[:, r.shape[1] - r.shape[1] // 3 :] = 0.0
    return mask
