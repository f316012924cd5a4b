"""FLUX's rotary embedding in front of attention, written in many ways: the graphs that rotary_forms.py times.

Letters: B batch, L tokens, H heads, D head size.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from svdq_trt.models.flux import image_ids
from svdq_trt.models.positions import RotaryTable

Rotate = Callable[[torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]
EPSILON = 1e-6  # of the norms
BLOCKS = 2


@dataclass(frozen=True)
class Sizes:
    """FLUX.1's at 1024²: L = text + side²."""

    heads: int = 24
    dim: int = 128
    text: int = 512
    side: int = 64

    def tables(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Tables cos and sin [L, D/2] f32."""
        ids = torch.cat((torch.zeros(self.text, 3), image_ids(self.side, self.side)))
        cos, sin, _ = RotaryTable(10000.0, (self.dim // 8, self.dim // 16 * 7, self.dim // 16 * 7))(ids)
        return cos[:, ::2], sin[:, ::2]


@functools.cache
def inputs_of(sizes: Sizes) -> dict[str, torch.Tensor]:
    """Tensors qkv [1, L, 3·H·D] bf16, cos, sin: the results of a block's projection and of the table of all blocks."""
    cos, sin = sizes.tables()
    rng = torch.Generator().manual_seed(0)
    qkv = torch.randn(1, len(cos), 3 * sizes.heads * sizes.dim, generator=rng)
    return {"qkv": qkv.bfloat16(), "cos": cos, "sin": sin}


# ---- the forms: x [B, L, H, D] or [B, H, L, D], cos and sin f32, [1, L, 1, D/2] or [1, 1, L, D/2] ------------------


def strided(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Two strided slices, interleaved again by a stack."""
    return torch.stack(_turned(x[..., 0::2], x[..., 1::2], cos, sin), dim=-1).flatten(-2).to(x.dtype)


def halves(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Two strided slices, left apart: all even channels, then all odd. Scores are the same sums if q and k agree."""
    return torch.cat(_turned(x[..., 0::2], x[..., 1::2], cos, sin), dim=-1).to(x.dtype)


def halves_transpose(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """The same with the pairs taken apart by one transpose [.., D/2, 2] -> [.., 2, D/2]."""
    return contiguous(x.unflatten(-1, (-1, 2)).transpose(-1, -2).flatten(-2), cos, sin)


def contiguous(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Pairs (i, i + D/2), as permuted rows of the projection would give them: two contiguous halves."""
    first, second = x.chunk(2, dim=-1)
    return torch.cat(_turned(first, second, cos, sin), dim=-1).to(x.dtype)


def rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """ONNX's RotaryEmbedding in f32, on [B, H, L, D]."""
    return _onnx_rope(x.float(), cos, sin, interleaved=True).to(x.dtype)


def rope_16(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """ONNX's RotaryEmbedding in x's dtype: cos, sin and products are rounded. For information."""
    return _onnx_rope(x, cos.to(x.dtype), sin.to(x.dtype), interleaved=True)


def rope_3d(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """ONNX's RotaryEmbedding in f32, on [B, L, H·D]."""
    flat = _onnx_rope(x.float().flatten(2), cos, sin, interleaved=True, num_heads=x.shape[2])
    y: torch.Tensor = flat.unflatten(-1, x.shape[2:])
    return y.to(x.dtype)


def rope_contiguous(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """ONNX's RotaryEmbedding in f32 on pairs (i, i + D/2)."""
    return _onnx_rope(x.float(), cos, sin).to(x.dtype)


def matrix(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x·cos + (x @ P)·sin: P is a signed permutation, so the product is exact in 16 bit.

    It is `rotate` of svdq_trt.models.positions with tables that broadcast, as all forms here take them.
    """
    d = x.shape[-1]
    rows = [[(1 if j % 2 else -1) if j == i ^ 1 else 0 for j in range(d)] for i in range(d)]
    p = torch.tensor(rows, dtype=x.dtype, device=x.device)
    return (x.float() * _twice(cos) + (x @ p).float() * _twice(sin)).to(x.dtype)


def gather(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x·cos + neighbour·(±sin), the neighbour by a Gather."""
    neighbour = x.index_select(-1, torch.arange(x.shape[-1], device=x.device) ^ 1)
    return (x.float() * _twice(cos) + neighbour.float() * _twice(sin, -sin)).to(x.dtype)


def flip(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x·cos + neighbour·(±sin), the neighbour by a slice with step -1 over the two of a pair."""
    neighbour: torch.Tensor = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
    return (x.float() * _twice(cos) + neighbour.float() * _twice(sin, -sin)).to(x.dtype)


def product(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """Each pair times its 2 x 2 matrix: products with [.., D/2, 2, 2], summed over the last axis."""
    turn = torch.stack((torch.stack((cos, -sin), dim=-1), torch.stack((sin, cos), dim=-1)), dim=-2)
    y: torch.Tensor = (x.float().unflatten(-1, (-1, 1, 2)) * turn).sum(-1)
    return y.flatten(-2).to(x.dtype)


def _turned(
    even: torch.Tensor, odd: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    even, odd = even.float(), odd.float()
    return even * cos - odd * sin, odd * cos + even * sin


def _onnx_rope(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, **attributes: Any) -> torch.Tensor:
    """ONNX's RotaryEmbedding, with tables [B, L, D/2], which it does not broadcast."""
    cos, sin = (t.reshape(1, -1, t.shape[-1]).expand(x.shape[0], -1, -1) for t in (cos, sin))
    return torch.onnx.ops.rotary_embedding(x, cos, sin, **attributes)


def _twice(table: torch.Tensor, first: torch.Tensor | None = None) -> torch.Tensor:
    """[.., D/2] -> [.., D]: every value, preceded by itself or by that of `first`."""
    return torch.stack((table if first is None else first, table), dim=-1).flatten(-2)


@dataclass(frozen=True)
class Form:
    """A way to norm and rotate q and k.

    Attributes:
        heads_first: rotate after the transpose, as [B, H, L, D].
        apart_in: q and k come with pairs (i, i + D/2), as permuted rows of the projection would give them.
        apart_out: q and k leave with such pairs.
        norm: RMSNorm as one "node", as arithmetic ("plain"), or "none".
    """

    rotate: Rotate | None
    heads_first: bool = False
    apart_in: bool = False
    apart_out: bool = False
    norm: str = "node"


FORMS = {
    "none": Form(None),
    "strided": Form(strided),
    "halves": Form(halves, apart_out=True),
    "rope": Form(rope, heads_first=True),
    "matrix": Form(matrix),
    "contiguous": Form(contiguous, apart_in=True, apart_out=True),
    "gather": Form(gather),
    "flip": Form(flip),
    "halves-heads-first": Form(halves, heads_first=True, apart_out=True),
    "halves-transpose": Form(halves_transpose, apart_out=True),
    "rope-16": Form(rope_16, heads_first=True),
    "rope-3d": Form(rope_3d),
    "rope-contiguous": Form(rope_contiguous, heads_first=True, apart_in=True, apart_out=True),
    "product": Form(product),
    "strided-heads-first": Form(strided, heads_first=True),
    "attention-alone": Form(None, norm="none"),
    "none-plain-norm": Form(None, norm="plain"),
    "strided-plain-norm": Form(strided, norm="plain"),
    "halves-plain-norm": Form(halves, apart_out=True, norm="plain"),
}


# ---- the block -----------------------------------------------------------------------------------------------------


class Norm(nn.Module):
    """RMSNorm over D with a weight, as torch computes it."""

    def __init__(self, weight: torch.Tensor, kind: str) -> None:
        super().__init__()
        self.weight, self.kind = nn.Parameter(weight.bfloat16()), kind

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.kind == "none":
            return x
        if self.kind == "node":
            return nn.functional.rms_norm(x, x.shape[-1:], self.weight, EPSILON)
        wide = x.float()
        return (wide * (wide.square().mean(-1, keepdim=True) + EPSILON).rsqrt() * self.weight.float()).to(x.dtype)


class Blocks(nn.Module):
    """qkv, cos, sin of `inputs_of` -> attention's output [B, L, H·D], or q and k in front of it, [B, H, L, D]."""

    def __init__(self, form: Form, sizes: Sizes, part: str) -> None:
        super().__init__()
        self.form, self.heads, self.part = form, sizes.heads, part
        weights = 1 + 0.2 * torch.randn(2, sizes.dim, generator=torch.Generator().manual_seed(1))
        if form.apart_in:
            weights = apart(weights)
        self.norm_q, self.norm_k = (Norm(weight, form.norm) for weight in weights)

    def forward(self, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> Any:
        if self.part == "rotation":
            return self._qkv(qkv, cos, sin)[:2]
        y = self._attend(qkv, cos, sin)
        for _ in range(BLOCKS - 1):
            y = self._attend(qkv + torch.cat((y, y, y), dim=-1), cos, sin)
        return y

    def _attend(self, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        q, k, v = self._qkv(qkv, cos, sin)
        y = nn.functional.scaled_dot_product_attention(q, k, v.to(q.dtype))
        return y.transpose(1, 2).flatten(2).to(qkv.dtype)

    def _qkv(self, qkv: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> tuple[torch.Tensor, ...]:
        q, k, v = (t.unflatten(-1, (self.heads, -1)) for t in qkv.chunk(3, dim=-1))
        q, k = self._turn(self.norm_q(q), cos, sin), self._turn(self.norm_k(k), cos, sin)
        return q, k, v.transpose(1, 2)

    def _turn(self, x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        """[B, L, H, D] -> [B, H, L, D]."""
        first = self.form.heads_first
        if first:
            x = x.transpose(1, 2)
        if self.form.rotate is not None:
            x = self.form.rotate(x, *(t[None].unsqueeze(1 if first else 2) for t in (cos, sin)))
        return x if first else x.transpose(1, 2)


def apart(x: torch.Tensor) -> torch.Tensor:
    """Channels [.., D]: the first of every pair, then the second."""
    return torch.cat((x[..., 0::2], x[..., 1::2]), dim=-1)


def feed(form: Form, sizes: Sizes) -> dict[str, torch.Tensor]:
    """The inputs, with the channels of q and k in the order that the form wants."""
    inputs = dict(inputs_of(sizes))
    if form.apart_in:
        q, k, v = inputs["qkv"].unflatten(-1, (3, sizes.heads, -1)).unbind(2)
        inputs["qkv"] = torch.stack((apart(q), apart(k), v), dim=2).flatten(2)
    return inputs


def reference(form: Form, sizes: Sizes, part: str, device: str) -> list[torch.Tensor]:
    """The outputs by torch: q and k rotated in f32 and not rounded, or of attention that is in f32 from there on."""
    turn = contiguous if form.apart_in else strided

    def rotate(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
        return x.float() if form.rotate is None else turn(x.float(), cos, sin)

    blocks = Blocks(Form(rotate, apart_in=form.apart_in, norm=form.norm), sizes, part).to(device)
    out = blocks(*(t.to(device) for t in feed(form, sizes).values()))
    if part == "attention":
        return [out]
    return [apart(t) if form.apart_out and not form.apart_in else t for t in out]
