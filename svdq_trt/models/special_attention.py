"""Attention processors of one class of diffusers each; what they share, and the letters, are in attention.py."""

from __future__ import annotations

from typing import Any

import torch

from svdq_trt.base.needs import need
from svdq_trt.models.attention import PLAIN, Joint, JointAttention, Processor, attend_heads, output, side_by_side
from svdq_trt.models.positions import Rotary


class BiasedJointAttention(Joint):
    """JointAttention with a bias on each pair of query and key, for which no attention op has an input (Chroma's)."""

    STANDS_FOR, PARTS = ("FluxAttnProcessor",), JointAttention.PARTS

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> Any:
        """Image [B, L, C] and text [B, T, C], if any, -> the same, with the mask [B, 1, T + L, T + L] as the bias."""
        return self.attend(attn, hidden_states, encoder_hidden_states, image_rotary_emb, attention_mask)


class AcrossHeadsAttention(Processor):
    """Processor of Wan's self and cross attention, whose norms of q and k are over all heads at once.

    The norms of an attention op are per head, so these stand in front of it.
    """

    STANDS_FOR, PARTS = ("WanAttnProcessor",), (*PLAIN, "norm_q", "norm_k")
    NORMS_IN_OP = False

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        rotary_emb: Rotary | None = None,
    ) -> torch.Tensor:
        """Video tokens [B, L, C] and, in cross attention, text [B, T, C] -> [B, L, C]."""
        assert attention_mask is None
        text = encoder_hidden_states
        if text is None:
            q, k, v = side_by_side(attn, hidden_states, "to_qkv", ("to_q", "to_k", "to_v"))
        else:
            q = attn.to_q(hidden_states)
            k, v = side_by_side(attn, text, "to_kv", ("to_k", "to_v"))
        q, k = attn.norm_q(q), attn.norm_k(k)
        if self.packed is not None and hasattr(attn, "to_qkv" if text is None else "to_kv"):
            if text is None:
                (y,) = self.packed(attn, torch.cat((q, k, v), dim=-1), rotary=rotary_emb)
            else:
                (y,) = self.packed(attn, q, kv=torch.cat((k, v), dim=-1))
            return output(attn, y)
        q, k, v = (t.unflatten(-1, (attn.heads, -1)) for t in (q, k, v))
        return output(attn, attend_heads(q, k, v, rotary_emb))


class ParallelAttention(Processor):
    """Processor of FLUX.2's one-stream blocks: q, k, v and the MLP's hidden are one projection, and so are the outputs.

    Each of the two may be in parts, which the exporter keeps apart.
    """

    STANDS_FOR = ("Flux2ParallelSelfAttnProcessor",)
    PARTS = ("to_qkv_mlp_proj", "mlp_act_fn", "norm_q", "norm_k", "to_out")

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> torch.Tensor:
        """[B, L, C] -> [B, L, C]."""
        assert attention_mask is None
        qkv, mlp = attn.to_qkv_mlp_proj(hidden_states).tensor_split([3 * attn.inner_dim], dim=-1)
        if self.packed is not None:
            (y,) = self.packed(attn, qkv, rotary=image_rotary_emb)
        else:
            q, k, v = (t.unflatten(-1, (attn.heads, -1)) for t in qkv.chunk(3, dim=-1))
            y = attend_heads(attn.norm_q(q), attn.norm_k(k), v, image_rotary_emb)
        out: torch.Tensor = attn.to_out(torch.cat((y, attn.mlp_act_fn(mlp)), dim=-1))
        return out


class GatedAttention(Processor):
    """Processor of Krea 2's self attention, fused (`to_qkv_gate`) or not: several heads share keys and values.

    A gate that is made of the same tokens is multiplied onto the output.
    """

    STANDS_FOR, PARTS = ("Krea2AttnProcessor",), (*PLAIN, "to_gate", "norm_q", "norm_k")

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
    ) -> torch.Tensor:
        """[B, L, C] -> [B, L, C]; the mask is always None, as the model runs without padding."""
        assert attention_mask is None
        size = attn.inner_dim // attn.heads
        widths = [size * heads for heads in (attn.heads, attn.kv_heads, attn.kv_heads)]
        one = getattr(attn, "to_qkv_gate", None)
        if one is None:
            names = ("to_q", "to_k", "to_v", "to_gate")
            q, k, v, gate = (getattr(attn, name)(hidden_states) for name in names)
        else:
            qkv, gate = one(hidden_states).tensor_split([sum(widths)], dim=-1)
            q, k, v = qkv.split(widths, dim=-1)
        if self.packed is not None and one is not None:
            (y,) = self.packed(attn, qkv, rotary=image_rotary_emb)
        else:
            q, k, v = (t.unflatten(-1, (-1, size)) for t in (q, k, v))
            k, v = (t.repeat_interleave(attn.heads // attn.kv_heads, dim=2) for t in (attn.norm_k(k), v))
            y = attend_heads(attn.norm_q(q), k, v, image_rotary_emb)
        return output(attn, y * torch.sigmoid(gate))


class MultiscaleLinearAttention:
    """Processor of AutoencoderDC's linear attention, which is always written as one.

    For no more pixels than a head has values diffusers' own takes the products in another order, in 16 bit.
    """

    def __call__(self, attn: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        """[B, C, H, W] -> the same; the products and their quotient are in f32 as diffusers has them."""
        pixels, size = hidden_states.movedim(1, -1), hidden_states.shape[2:]
        qkv = torch.cat((attn.to_q(pixels), attn.to_k(pixels), attn.to_v(pixels)), dim=3).movedim(-1, 1)
        qkv = torch.cat((qkv, *(project(qkv) for project in attn.to_qkv_multiscale)), dim=1).float()
        q, k, v = qkv.unflatten(1, (-1, 3 * attn.attention_head_dim)).flatten(3).chunk(3, dim=2)
        y: torch.Tensor = attn.apply_linear_attention(q.relu(), k.relu(), v).to(hidden_states.dtype)
        y = attn.to_out(y.flatten(1, 2).unflatten(2, size).movedim(1, -1))
        rms = attn.norm_type == "rms_norm"  # over the last axis; the others' channels are the second
        y = attn.norm_out(y).movedim(-1, 1) if rms else attn.norm_out(y.movedim(-1, 1))
        return y + hidden_states


def write_out_attention(module: Any) -> None:
    """Have an autoencoder's attention, of softmax or linear, written out as products."""
    if hasattr(module, "set_attn_processor"):
        module.set_attn_processor(need("diffusers", "diffusers.models.attention_processor", "AttnProcessor")())
        return
    linear = need("diffusers", "diffusers.models.attention_processor", "SanaMultiscaleLinearAttention")
    for layer in module.modules():
        if isinstance(layer, linear):
            layer.processor = MultiscaleLinearAttention()
