"""Attention whose q, k, v may come from one fused linear.

Plain nn.Linear in the fused places work as well, and so do diffusers' own to_q, to_k and to_v. No branch depends on
data or sizes, so all export with dynamic batch and tokens. Shapes: B batch, L image tokens, T text tokens, H heads,
D head size, C = H·D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn


def _project(attn: Any, x: torch.Tensor, fused: str, names: Sequence[str]) -> Sequence[torch.Tensor]:
    """Outputs of the linears `names`, [B, L, C] each, from the fused one where it is installed."""
    one = getattr(attn, fused, None)
    return one(x).chunk(len(names), dim=-1) if one is not None else [getattr(attn, name)(x) for name in names]


def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, L, H·D] -> [B, H, L, D]."""
    b, t, _ = x.shape
    return x.reshape(b, t, heads, -1).transpose(1, 2)


def _attend(
    attn: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    h: int = attn.heads
    y = nn.functional.scaled_dot_product_attention(_heads(q, h), _heads(k, h), _heads(v, h), attn_mask=bias)
    out: torch.Tensor = attn.to_out[0](y.transpose(1, 2).flatten(2))
    return out


class FusedSelfAttention:
    """Processor of an Attention that may have `to_qkv` in the place of to_q, to_k and to_v."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[B, L, C] -> [B, L, C]. Self attention without a mask."""
        assert encoder_hidden_states is None and attention_mask is None
        q, k, v = _project(attn, hidden_states, "to_qkv", ("to_q", "to_k", "to_v"))
        return _attend(attn, q, k, v)


class FusedCrossAttention:
    """Processor of an Attention that may have `to_kv` in the place of to_k and to_v."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Image tokens [B, L, C] and text [B, T, K] -> [B, L, C]; the mask is a bias [B, 1, T] on the logits."""
        assert encoder_hidden_states is not None
        k, v = _project(attn, encoder_hidden_states, "to_kv", ("to_k", "to_v"))
        bias = None
        if attention_mask is not None:  # written out to [B, 1, L, T]: not every runtime broadcasts a mask
            bias = attention_mask[:, None].expand(-1, -1, hidden_states.shape[1], -1).to(hidden_states.dtype)
        return _attend(attn, attn.to_q(hidden_states), k, v, bias)


class FusedLinearAttention:
    """Processor of SANA's linear attention, with `to_qkv` or without: relu(q), relu(k), and no softmax."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[B, L, C] -> [B, L, C]: y = q (kᵀ v) / (q · sum of k), in f32 as diffusers does."""
        assert encoder_hidden_states is None and attention_mask is None
        q, k, v = _project(attn, hidden_states, "to_qkv", ("to_q", "to_k", "to_v"))
        q, k, v = (_heads(t.float(), attn.heads) for t in (q.relu(), k.relu(), v))
        y = q @ (k.transpose(2, 3) @ v)
        y = y / ((q * k.sum(2, keepdim=True)).sum(-1, keepdim=True) + 1e-15)
        out: torch.Tensor = attn.to_out[0](y.transpose(1, 2).flatten(2).to(hidden_states.dtype))
        return out
