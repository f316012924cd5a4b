"""Modules that stand in the place of diffusers' FLUX ones: attention over two streams, rotary table, split projection.

They compute the same and export better: q, k, v may be one fused linear, angles are f32 (diffusers takes f64, which
TensorRT has not), pairs are swapped by a product with a permutation. No branch depends on data or sizes.
Shapes: B batch, T text tokens, S image tokens, L = T + S, H heads, D head size, C = H·D channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from svdq_trt.models.constants import constant

Rotary = tuple[torch.Tensor, torch.Tensor, torch.Tensor]


class RotaryTable(nn.Module):
    """Positions [L, axes] f32 -> cos, sin [L, D] and swap [D, D], all f32; `axes` gives each axis' share of D.

    A pair has its cos and its sin twice. `x @ swap` is (-b, a) for each pair (a, b) of x: a quarter turn.
    """

    def __init__(self, theta: float, axes: tuple[int, ...]) -> None:
        super().__init__()
        self.axes = axes
        # f64 here, once; Python's numbers, so that the module has no state of its own
        self.frequencies = [tuple(theta ** (-2.0 * i / dim) for i in range(dim // 2)) for dim in axes]
        d = sum(axes)
        self.swap = tuple((1.0 if j % 2 else -1.0) if j == i ^ 1 else 0.0 for i in range(d) for j in range(d))

    def forward(self, ids: torch.Tensor) -> Rotary:
        """Angles are position times frequency, axis by axis."""
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


class JointAttention:
    """Processor of FLUX's and Stable Diffusion 3's attention, fused (`to_qkv`, `to_added_qkv`) or not.

    With a text stream or without, with rotary positions or without, with norms of q and k or without.
    """

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> Any:
        """[B, S, C] (and [B, T, C]) -> the same. An output without a projection of its own is left to its block."""
        assert attention_mask is None
        q, k, v = _project(attn, hidden_states, "to_qkv", ("to_q", "to_k", "to_v"))
        q, k = _normed(attn, "norm_q", q), _normed(attn, "norm_k", k)
        tokens = 0
        if encoder_hidden_states is not None:
            tokens = encoder_hidden_states.shape[1]
            names = ("add_q_proj", "add_k_proj", "add_v_proj")
            tq, tk, tv = _project(attn, encoder_hidden_states, "to_added_qkv", names)
            tq, tk = _normed(attn, "norm_added_q", tq), _normed(attn, "norm_added_k", tk)
            q, k, v = (torch.cat(pair, dim=1) for pair in ((tq, q), (tk, k), (tv, v)))
        if image_rotary_emb is not None:
            q, k = rotate(q, image_rotary_emb), rotate(k, image_rotary_emb)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        y = nn.functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        to_out, to_add_out = getattr(attn, "to_out", None), getattr(attn, "to_add_out", None)
        if encoder_hidden_states is None:
            return y if to_out is None else to_out[0](y)
        text = y[:, :tokens]
        assert to_out is not None
        return to_out[0](y[:, tokens:]), text if to_add_out is None else to_add_out(text)


def _normed(attn: Any, name: str, x: torch.Tensor) -> torch.Tensor:
    """`x` through the norm of that name, where there is one."""
    norm = getattr(attn, name, None)
    return x if norm is None else norm(x)


def _project(attn: Any, x: torch.Tensor, fused: str, names: tuple[str, str, str]) -> tuple[torch.Tensor, ...]:
    """[B, L, C] -> q, k, v [B, L, H, D]."""
    one = getattr(attn, fused, None)
    parts = one(x).chunk(3, dim=-1) if one is not None else [getattr(attn, name)(x) for name in names]
    return tuple(t.unflatten(-1, (attn.heads, -1)) for t in parts)


class SplitProjection(nn.Module):
    """A linear whose input is two tensors side by side, as two linears whose outputs are added.

    For a single block's `proj_out`: no concatenation of [M, C + 4C] is written and read, and attention output and MLP
    hidden, which differ in size, get scales and a low-rank branch of their own.
    """

    def __init__(self, whole: nn.Linear, first: int) -> None:
        super().__init__()
        self.attn = _columns(whole, 0, first)
        self.mlp = _columns(whole, first, whole.in_features)

    def forward(self, attn: torch.Tensor, mlp: torch.Tensor) -> torch.Tensor:
        """[B, L, K1] and [B, L, K2] -> [B, L, N]."""
        y: torch.Tensor = self.attn(attn) + self.mlp(mlp)
        return y


def _columns(whole: nn.Linear, start: int, stop: int) -> nn.Linear:
    """A linear on input features [start, stop); the bias goes with feature 0. Views, no copies."""
    part = nn.Linear(stop - start, whole.out_features, bias=start == 0 and whole.bias is not None, device="meta")
    part.weight = nn.Parameter(whole.weight.detach()[:, start:stop], requires_grad=False)
    if start == 0 and whole.bias is not None:
        part.bias = nn.Parameter(whole.bias.detach(), requires_grad=False)
    return part


def single_block_forward(
    block: Any,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    temb: torch.Tensor,
    image_rotary_emb: Rotary | None = None,
    joint_attention_kwargs: dict[str, Any] | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """FluxSingleTransformerBlock.forward with a SplitProjection: the two halves of its input stay apart."""
    assert not joint_attention_kwargs
    tokens = encoder_hidden_states.shape[1]
    residual = torch.cat([encoder_hidden_states, hidden_states], dim=1)
    normed, gate = block.norm(residual, emb=temb)
    mlp = block.act_mlp(block.proj_mlp(normed))
    attn = block.attn(hidden_states=normed, image_rotary_emb=image_rotary_emb)
    out = residual + gate.unsqueeze(1) * block.proj_out(attn, mlp)
    return out[:, :tokens], out[:, tokens:]
