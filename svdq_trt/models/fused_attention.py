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


def _attend(attn: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    h: int = attn.heads
    y = nn.functional.scaled_dot_product_attention(_heads(q, h), _heads(k, h), _heads(v, h))
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
        q, k, v = attn.to_qkv(hidden_states).chunk(3, dim=-1)
        return _attend(attn, q, k, v)


class FusedCrossAttention:
    """Processor of an Attention that has `to_kv` in the place of to_k and to_v."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Image tokens [B, T, C] and text [B, tokens, K] -> [B, T, C]. No mask."""
        assert encoder_hidden_states is not None and attention_mask is None
        k, v = attn.to_kv(encoder_hidden_states).chunk(2, dim=-1)
        return _attend(attn, attn.to_q(hidden_states), k, v)
