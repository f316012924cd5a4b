"""Positions for images of any size: sine and cosine added to patches, computed or from a table; rotary tables.

diffusers keeps a table for one size, or computes in f64, which TensorRT does not have. What is computed here has no
state; a table that a checkpoint has is its own. Shapes: B batch, C channels, L tokens, H heads, D head size.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.needs import need

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


def install_rotary(owner: Any, name: str, axes: str = "axes_dim") -> None:
    """Put a RotaryTable in the place of the module `name`, whose attribute `axes` gives each axis' share of D."""
    own = getattr(owner, name)
    if not isinstance(own, RotaryTable):
        setattr(owner, name, RotaryTable(own.theta, tuple(getattr(own, axes))))


class GridRotary(nn.Module):
    """Rotary tables of a video's tokens, by frame, row and column; `patch` is a token's share of each."""

    def __init__(self, theta: float, axes: tuple[int, ...], patch: tuple[int, ...]) -> None:
        super().__init__()
        self.table, self.patch = RotaryTable(theta, axes), patch

    def forward(self, video: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Cos and sin [1, L, 1, D], as diffusers' own attention takes them."""
        cos, sin, _ = self.of(video)
        return cos[None, :, None], sin[None, :, None]

    def of(self, video: torch.Tensor) -> Rotary:
        """The tables for latents [B, C, F, H, W], whose tokens stand frame by frame and row by row."""
        frames, rows, columns = (n // p for n, p in zip(video.shape[2:], self.patch, strict=True))
        frame, row, column = (torch.arange(n, device=video.device) for n in (frames, rows, columns))
        grid = (frame[:, None, None], row[:, None], column)
        ids = torch.stack([at.expand(frames, rows, columns) for at in grid], dim=-1)
        tables: Rotary = self.table(ids.flatten(0, 2))
        return tables


def rotate(x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Rotate the pairs (x[..., 2i], x[..., 2i + 1]) of x [B, L, H, D], in f32, back in x's dtype.

    The product with `swap` has one term per output that is not zero, so it is exact in x's dtype.
    """
    cos, sin = (t[:, None] for t in rotary[:2])
    turned = x @ rotary[2].to(x.dtype)
    return (x.float() * cos + turned.float() * sin).to(x.dtype)


class PlainPatches(nn.Module):
    """Replaces a PatchEmbed without positions; its convolution keeps its name."""

    def __init__(self, embed: Any) -> None:
        super().__init__()
        assert embed.pos_embed is None
        self.proj = embed.proj

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """[B, channels in, height, width] -> tokens [B, height/patch · width/patch, C], row by row."""
        x: torch.Tensor = self.proj(latent)
        return x.flatten(2).transpose(1, 2)


class Patches(nn.Module):
    """Replaces a PatchEmbed whose positions stretch with the image: the same numbers, computed from height and width.

    Args:
        embed: the PatchEmbed, whose convolution this module keeps under the same name.
        channels: C of the tokens.
    """

    def __init__(self, embed: Any, channels: int) -> None:
        super().__init__()
        self.proj, self.patch, self.channels = embed.proj, embed.patch_size, channels
        self.side = embed.base_size / embed.interpolation_scale  # positions of an image's side, for every size

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """[B, channels in, height, width] -> tokens [B, height/patch · width/patch, C], row by row."""
        rows, columns = latent.shape[-2] // self.patch, latent.shape[-1] // self.patch
        return _placed(self.proj(latent), self._waves(rows, latent.device), self._waves(columns, latent.device))

    def _waves(self, count: int, device: torch.device) -> torch.Tensor:
        """[count, C/2] f32: sines, then cosines, of each position."""
        at = torch.arange(count, dtype=torch.float32, device=device) * self.side / count
        quarter = self.channels // 4
        frequencies = constant(tuple(10000.0 ** (-i / quarter) for i in range(quarter)), device)
        angles = at[:, None] * frequencies
        return torch.cat((angles.sin(), angles.cos()), dim=-1)


@dataclass(frozen=True)
class PositionTable:
    """A table of positions [1, S·S, C] that a checkpoint has as weights, and the two parameters [S, C/2] made from it.

    Half of its channels follow from the column alone, the other half from the row, however they were computed: so the
    parameters hold all of it in 1/S of the memory. A table of another kind is refused.

    Attributes:
        module: name of the PatchEmbed. size: S. channels: C. base: positions along S, where no checkpoint has a table.
    """

    module: str
    size: int
    channels: int
    base: int

    @property
    def name(self) -> str:
        """Name of the table in a checkpoint."""
        return f"{self.module}.pos_embed"

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the table in a checkpoint."""
        return (1, self.size**2, self.channels)

    @property
    def parameters(self) -> tuple[str, str]:
        """Names of the two parameters."""
        return f"{self.module}.rows", f"{self.module}.columns"

    def split(self, where: str, table: torch.Tensor) -> dict[str, torch.Tensor]:
        """The parameters by name, of a table of that `shape`. Raises ArtifactError unless they hold all of it."""
        grid = table.view(self.size, self.size, self.channels)
        columns, rows = grid[0, :, : self.channels // 2], grid[:, 0, self.channels // 2 :]
        if (
            not (grid[..., : self.channels // 2] == columns).all()
            or not (grid[..., self.channels // 2 :] == rows[:, None]).all()
        ):
            raise ArtifactError(
                where,
                "positions that depend on row and column at once",
                "half of the channels from the column, half from the row, as in published checkpoints",
            )
        return dict(zip(self.parameters, (rows.contiguous(), columns.contiguous()), strict=True))

    def join(self, parameters: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """The table, of the parameters by name: the inverse of `split`."""
        rows, columns = (parameters[name] for name in self.parameters)
        square = (self.size, self.size, self.channels // 2)
        halves = columns[None].expand(square), rows[:, None].expand(square)
        return torch.cat(halves, -1).reshape(self.shape)

    def made(self) -> dict[str, torch.Tensor]:
        """The parameters by name, in f32, as diffusers makes its table."""
        import diffusers  # noqa: F401 - for build/code.py, as in models/spec.py

        at = torch.arange(self.size, dtype=torch.float32) * (self.base / self.size)
        embed = need("diffusers", "diffusers.models.embeddings", "get_1d_sincos_pos_embed_from_grid")
        waves = embed(self.channels // 2, at, output_type="pt").float()
        return dict.fromkeys(self.parameters, waves)


class TablePatches(nn.Module):
    """Replaces a PatchEmbed that cuts the middle out of a table of positions; the table is weights, as PositionTable.

    Args:
        embed: the PatchEmbed, whose convolution and table this module keeps.
        table: the table's description.
    """

    def __init__(self, embed: Any, table: PositionTable) -> None:
        super().__init__()
        self.proj, self.patch, self.size = embed.proj, embed.patch_size, table.size
        half = (table.size, table.channels // 2)
        parts = [torch.empty(half, device="meta")] * 2
        if not embed.pos_embed.is_meta:
            parts = list(table.split(table.name, embed.pos_embed).values())
        self.rows, self.columns = (nn.Parameter(part, requires_grad=False) for part in parts)

    def forward(self, latent: torch.Tensor) -> torch.Tensor:
        """[B, channels in, height, width] -> tokens [B, height/patch · width/patch, C], row by row."""
        rows, columns = latent.shape[-2] // self.patch, latent.shape[-1] // self.patch
        return _placed(self.proj(latent), self._middle(self.rows, rows), self._middle(self.columns, columns))

    def _middle(self, table: torch.Tensor, count: int) -> torch.Tensor:
        """The middle `count` of S rows. By number, as a slice would make torch.export prove that they are there."""
        return table[torch.arange(count, device=table.device) + (self.size - count) // 2]


def _placed(x: torch.Tensor, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Patches [B, C, H, W] with the positions of their row [H, C/2] and column [W, C/2] -> tokens [B, H·W, C]."""
    wide = columns[None].expand(rows.shape[0], -1, -1)
    high = rows[:, None].expand(-1, columns.shape[0], -1)
    return (x.permute(0, 2, 3, 1) + torch.cat((wide, high), dim=-1)).flatten(1, 2).to(x.dtype)


def constant(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """The values in f32, copied to a GPU only once: the capture of a CUDA graph allows no copy from the host."""
    if device.type == "cuda":
        return _on_gpu(values, device)
    return torch.tensor(values, dtype=torch.float32, device=device)


@functools.cache
def _on_gpu(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)
