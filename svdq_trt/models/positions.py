"""Positions computed inside the graph, for images of any size: sine and cosine added to patches, rotary tables.

diffusers keeps a table for one size, or computes in f64, which TensorRT does not have. Modules here have no state of
their own. Shapes: B batch, C channels, L tokens, H heads, D head size.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import nn

Rotary = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class RotaryTable(nn.Module):
    """Positions [L, axes] f32 -> cos, sin [L, D] and swap [D, D], all f32; `axes` gives each axis' share of D.

    Each pair's cos and sin stand there twice. `x @ swap` is (-b, a) for each pair (a, b) of x: a quarter turn.
    """

    def __init__(self, theta: float, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.axes = axes
        # f64 here, once; Python's numbers, so that the module has no state of its own
        self.frequencies = [tuple(theta ** (-2.0 * i / dim) for i in range(dim // 2)) for dim in axes]
        d = sum(axes)
        self.swap = tuple((1.0 if j % 2 else -1.0) if j == i ^ 1 else 0.0 for i in range(d) for j in range(d))

    def forward(self, ids: torch.Tensor) -> Rotary:
        """The tables for positions `ids`: angles are position times frequency, axis by axis."""
        angles = torch.cat(
            [ids[:, i : i + 1].float() * constant(f, ids.device) for i, f in enumerate(self.frequencies)],
            dim=-1,
        )
        angles = torch.stack((angles, angles), dim=-1).flatten(-2)
        swap = constant(self.swap, ids.device).view(angles.shape[-1], -1)
        return angles.cos(), angles.sin(), swap


def rotate(x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Rotate the pairs (x[..., 2i], x[..., 2i + 1]) of x [B, L, H, D], in f32, back in x's dtype.

    The product with `swap` has one term per output that is not zero, so it is exact in x's dtype.
    """
    cos, sin = (t[:, None] for t in rotary[:2])
    turned = x @ rotary[2].to(x.dtype)
    return (x.float() * cos + turned.float() * sin).to(x.dtype)


class Patches(nn.Module):
    """Replaces diffusers' PatchEmbed: the same numbers, computed from height and width; no table.

    Args:
        embed: the PatchEmbed, whose convolution this module keeps under the same name.
        channels: C of the tokens.
    """

    def __init__(self, embed: Any, channels: int) -> None:
        super().__init__()
        self.proj = embed.proj
        self.patch, self.most = embed.patch_size, embed.pos_embed_max_size
        self.step = 1.0 / embed.interpolation_scale  # between patches, for an image of the base size
        self.base, self.channels = embed.base_size, channels

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """[B, channels in, height, width] -> tokens [B, height/patch · width/patch, C], row by row."""
        rows, columns = latent.shape[-2] // self.patch, latent.shape[-1] // self.patch
        x: torch.Tensor = self.proj(latent)
        table = torch.cat(
            (
                self._waves(columns, latent.device)[None].expand(rows, -1, -1),
                self._waves(rows, latent.device)[:, None].expand(-1, columns, -1),
            ),
            dim=-1,
        )
        return (x.permute(0, 2, 3, 1) + table).flatten(1, 2).to(latent.dtype)

    def _waves(self, count: int, device: torch.device) -> torch.Tensor:
        """[count, C/2] f32: sines, then cosines, of each position."""
        at = torch.arange(count, dtype=torch.float32, device=device)
        if self.most is None:  # positions stretch with the image
            at = at * self.base / count * self.step
        else:  # the middle of a table with `most` positions
            at = (at + (self.most - count) // 2) * (self.step * self.base / self.most)
        quarter = self.channels // 4
        frequencies = constant(tuple(10000.0 ** (-i / quarter) for i in range(quarter)), device)
        angles = at[:, None] * frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


def compute_positions(module: Any, name: str) -> None:
    """Replace the PatchEmbed called `name` of a diffusers transformer by Patches."""
    channels: int = module.config.num_attention_heads * module.config.attention_head_dim
    setattr(module, name, Patches(getattr(module, name), channels))


def constant(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """The values in f32, copied to a GPU only once: the capture of a CUDA graph allows no copy from the host."""
    if device.type == "cuda":
        return _on_gpu(values, device)
    return torch.tensor(values, dtype=torch.float32, device=device)


@functools.cache
def _on_gpu(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)
