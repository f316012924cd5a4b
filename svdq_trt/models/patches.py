"""Latent to tokens with sine and cosine positions that follow the size of the image, inside the graph.

diffusers keeps a table for one size and computes others outside of the graph. Shapes: B batch, C channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from svdq_trt.models.constants import constant


class Patches(nn.Module):
    """In the place of diffusers' PatchEmbed: the same numbers, computed from height and width; no table.

    Args:
        embed: the PatchEmbed; its convolution is taken over under the same name.
        channels: C of the tokens.
    """

    def __init__(self, embed: Any, channels: int) -> None:
        super().__init__()
        self.proj = embed.proj
        self.patch, self.most = embed.patch_size, embed.pos_embed_max_size
        self.step = 1.0 / embed.interpolation_scale  # of one patch, for an image of the base size
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
        else:  # the middle of a table of `most` positions
            at = (at + (self.most - count) // 2) * (self.step * self.base / self.most)
        quarter = self.channels // 4
        frequencies = constant(tuple(10000.0 ** (-i / quarter) for i in range(quarter)), device)
        angles = at[:, None] * frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


def compute_positions(module: Any, name: str = "pos_embed") -> None:
    """Replace the PatchEmbed called `name` of a diffusers transformer by Patches."""
    channels: int = module.config.num_attention_heads * module.config.attention_head_dim
    setattr(module, name, Patches(getattr(module, name), channels))
