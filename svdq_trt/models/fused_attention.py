"""Attention whose q, k, v come from one fused linear.

A plain nn.Linear in the fused place works as well. No branch depends on data or sizes, so both export with
dynamic batch and tokens. Shapes: B batch, T tokens, H heads, D head size, C = H·D channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn


def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, T, H·D] -> [B, H, T, D]."""
    b, t, _ = x.shape
    return x.reshape(b, t, heads, -1).transpose(1, 2)


def _parts(x: torch.Tensor, heads: int, parts: int) -> torch.Tensor:
    """[B, T, parts·H·D] -> [parts, B, H, T, D].

    One transpose for all parts: TensorRT copies every operand of attention that comes from a plugin, and writes
    these in one kernel where `parts` slices take one each.
    """
    b, t, _ = x.shape
    return x.reshape(b, t, parts, heads, -1).permute(2, 0, 3, 1, 4)


def _attend(attn: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    y = nn.functional.scaled_dot_product_attention(q, k, v)
    out: torch.Tensor = attn.to_out[0](y.transpose(1, 2).flatten(2))
    return out


class FusedSelfAttention:
    """Processor of an Attention that has `to_qkv` in the place of to_q, to_k and to_v."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[B, T, C] -> [B, T, C]. Self attention without a mask."""
        assert encoder_hidden_states is None and attention_mask is None
        qkv = _parts(attn.to_qkv(hidden_states), attn.heads, 3)
        return _attend(attn, qkv[0], qkv[1], qkv[2])


class SharedProjection:
    """Keys and values of several attentions that read the same text, while a forward pass runs.

    The first attention's `to_kv` projects for all of them: one large product instead of many small ones.

    Attributes:
        count: how many attentions read it, in the order they run.
        value: [B, tokens, count·2C] between the first of them and the last.
    """

    def __init__(self, count: int) -> None:
        self.count = count
        self.value: torch.Tensor | None = None


class FusedCrossAttention:
    """Processor of an Attention whose keys and values are the `index`-th part of a shared projection."""

    def __init__(self, shared: SharedProjection, index: int) -> None:
        self.shared, self.index = shared, index

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Image tokens [B, T, C] and text [B, tokens, K] -> [B, T, C]. No mask."""
        assert encoder_hidden_states is not None and attention_mask is None
        if self.index == 0:
            self.shared.value = attn.to_kv(encoder_hidden_states)
        both = self.shared.value
        assert both is not None
        if self.index == self.shared.count - 1:
            self.shared.value = None
        width = both.shape[-1] // self.shared.count
        kv = _parts(both[..., self.index * width : (self.index + 1) * width], attn.heads, 2)
        return _attend(attn, _heads(attn.to_q(hidden_states), attn.heads), kv[0], kv[1])
