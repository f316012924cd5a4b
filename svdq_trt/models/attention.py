"""Attention processors whose q, k, v may come from one fused linear, or from diffusers' own to_q, to_k and to_v.

No branch depends on data or sizes, so all export with dynamic batch and tokens. Shapes: B batch, L image tokens, T text
tokens, H heads, D head size, C = H·D channels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch
from torch import nn

from svdq_trt.base.errors import UnsupportedError
from svdq_trt.base.needs import lacking
from svdq_trt.models.positions import Rotary, rotate

PLAIN = ("to_q", "to_k", "to_v", "to_out")
_TEXT = ("add_q_proj", "add_k_proj", "add_v_proj", "to_add_out")
_NORMS = ("norm_q", "norm_k", "norm_added_q", "norm_added_k")
#: RMS norms by their classes' names, and what they add to their weight
RMS_NORMS = {"RMSNorm": 0.0, "Krea2RMSNorm": 1.0}
_FUSED = ("to_qkv", "to_kv", "to_added_qkv", "to_qkv_gate")


def check_attention(name: str, attn: Any, processor: type[Any]) -> None:
    """Refuse an attention that computes what `processor`, one of this file's, does not.

    A release of diffusers may add to a class what no name here knows: then its own processor is another, or the
    module has other parts.

    Raises:
        UnsupportedError: names the attention and what is unknown.
    """
    where, want = f"attention '{name}'", f"what {processor.__name__} computes"
    for needed in ("heads", "set_processor", "processor"):
        if not hasattr(attn, needed):
            raise lacking("diffusers", f"{needed} of {where}")
    own = type(attn.processor)
    if not hasattr(own, "STANDS_FOR") and own.__name__ not in processor.STANDS_FOR:
        raise UnsupportedError(where, f"diffusers' processor {own.__name__}", want)
    parts = {child for child, _ in attn.named_children()} - set(processor.PARTS) - set(_FUSED)
    if parts:
        raise UnsupportedError(where, f"has {min(parts)}", want)
    for setting, plain in (("residual_connection", False), ("rescale_output_factor", 1.0)):
        if getattr(attn, setting, plain) != plain:
            raise UnsupportedError(where, f"{setting} is {getattr(attn, setting)}", want)


class PackedAttention(Protocol):
    """Attention on what fused linears give, packed as in svdq_trt/contract/attention.py."""

    def __call__(
        self,
        attn: Any,
        first: torch.Tensor,
        *,
        kv: torch.Tensor | None = None,
        kv_part: int = 0,
        bias: torch.Tensor | None = None,
        added_qkv: torch.Tensor | None = None,
        rotary: Rotary | None = None,
    ) -> tuple[torch.Tensor, ...]:
        """Attend, with the norms that `attn` has.

        Args:
            attn: the diffusers attention.
            first: q, k, v [B, L, 3C]; with `kv`, q [B, L, C].
            kv: [B, T, P·2C], of which part `kv_part` is read. bias: [B, T], on the logits of each key.
            added_qkv: [B, T, 3C] of a stream that comes before. rotary: tables of all tokens.

        Returns:
            y [B, L, C], and with `added_qkv` the other stream's [B, T, C].
        """
        ...


class Processor:
    """A processor that calls `packed`, if that is set, where its attention's linears are fused.

    Without it, and for linears that are not fused, torch's scaled_dot_product_attention runs on q, k, v by heads.
    """

    packed: PackedAttention | None = None
    #: whether an attention op's norms of q and k stand for the attention's
    NORMS_IN_OP = True


def _project(attn: Any, x: torch.Tensor, fused: str, names: Sequence[str]) -> Sequence[torch.Tensor]:
    """Outputs of the linears `names`, [B, H, L, D] each, from the fused linear where it is installed."""
    one = getattr(attn, fused, None)
    if one is not None:
        return _parts(one(x), attn.heads, len(names))
    return [_heads(getattr(attn, name)(x), attn.heads) for name in names]


def _heads(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, L, H·D] -> [B, H, L, D]."""
    b, t, _ = x.shape
    return x.reshape(b, t, heads, -1).transpose(1, 2)


def _parts(x: torch.Tensor, heads: int, parts: int) -> Sequence[torch.Tensor]:
    """[B, L, parts·H·D] -> list of `parts` tensors [B, H, L, D].

    One transpose for all parts: TensorRT copies every operand of attention that comes from a plugin; it makes
    these copies in one kernel, but `parts` slices in one kernel each. They are sliced and reshaped, as some releases of
    TensorRT-RTX refuse the Squeeze of an unbind().
    """
    b, t, _ = x.shape
    whole = x.reshape(b, t, parts, heads, -1).permute(2, 0, 3, 1, 4)
    return [whole[i : i + 1].flatten(0, 1) for i in range(parts)]


def output(attn: Any, y: torch.Tensor) -> torch.Tensor:
    """Values [B, L, C] through the attention's own output projection."""
    out: torch.Tensor = attn.to_out[0](y)
    return out


def _attend(
    attn: Any, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor | None = None
) -> torch.Tensor:
    y = nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias)
    return output(attn, y.transpose(1, 2).flatten(2))


class FusedSelfAttention(Processor):
    """Processor of an Attention that may have `to_qkv` instead of to_q, to_k and to_v."""

    STANDS_FOR, PARTS = ("AttnProcessor2_0",), PLAIN

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """[B, L, C] -> [B, L, C]. Self attention without a mask."""
        assert encoder_hidden_states is None and attention_mask is None
        if self.packed is not None and hasattr(attn, "to_qkv"):
            (y,) = self.packed(attn, attn.to_qkv(hidden_states))
            return output(attn, y)
        q, k, v = _project(attn, hidden_states, "to_qkv", ("to_q", "to_k", "to_v"))
        return _attend(attn, q, k, v)


class SharedProjection:
    """Keys and values of several attentions that read the same text, held during a forward pass.

    The first attention's `to_kv` projects for all of them: one large product instead of many small ones.

    Attributes:
        count: how many attentions read it, in the order they run.
        value: [B, T, count·2C] from the first reader to the last, else None.
    """

    def __init__(self, count: int = 1) -> None:
        self.count = count
        self.value: torch.Tensor | None = None

    def whole(self, attn: Any, text: torch.Tensor, index: int) -> torch.Tensor:
        """[B, T, count·2C] for the `index`-th reader, `attn`; the first projects, the last one frees."""
        if index == 0:
            self.value = attn.to_kv(text)
        both = self.value
        assert both is not None
        if index == self.count - 1:
            self.value = None
        return both

    def part(self, attn: Any, text: torch.Tensor, index: int) -> Sequence[torch.Tensor]:
        """Keys and values [B, H, T, D] of the `index`-th reader, `attn`."""
        both = self.whole(attn, text, index)
        width = both.shape[-1] // self.count
        return _parts(both[..., index * width : (index + 1) * width], attn.heads, 2)


class FusedCrossAttention(Processor):
    """Processor of an Attention whose keys and values may be the `index`-th part of a shared projection.

    Without `shared` it takes its own `to_kv` or, where that is not installed, diffusers' to_k and to_v.
    """

    STANDS_FOR, PARTS = ("AttnProcessor2_0", "SanaAttnProcessor2_0"), PLAIN

    def __init__(self, shared: SharedProjection | None = None, index: int = 0) -> None:
        self.shared, self.index = shared, index

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Image tokens [B, L, C] and text [B, T, K] -> [B, L, C]; the mask is a bias [B, 1, T] on the logits."""
        assert encoder_hidden_states is not None
        if self.packed is not None and (self.shared is not None or hasattr(attn, "to_kv")):
            shared = SharedProjection() if self.shared is None else self.shared
            kv = shared.whole(attn, encoder_hidden_states, self.index)
            mask = None if attention_mask is None else attention_mask.flatten(1).to(hidden_states.dtype)
            (y,) = self.packed(attn, attn.to_q(hidden_states), kv=kv, kv_part=self.index, bias=mask)
            return output(attn, y)
        if self.shared is not None:
            k, v = self.shared.part(attn, encoder_hidden_states, self.index)
        else:
            k, v = _project(attn, encoder_hidden_states, "to_kv", ("to_k", "to_v"))
        bias = None if attention_mask is None else attention_mask[:, None].to(hidden_states.dtype)
        return _attend(attn, _heads(attn.to_q(hidden_states), attn.heads), k, v, bias)


class FusedLinearAttention:
    """Processor of SANA's linear attention, with or without `to_qkv`: relu(q), relu(k), and no softmax."""

    STANDS_FOR, PARTS = ("SanaLinearAttnProcessor2_0",), PLAIN

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
        q, k, v = q.relu().float(), k.relu().float(), v.float()
        y = q @ (k.transpose(2, 3) @ v)
        y = y / ((q * k.sum(2, keepdim=True)).sum(-1, keepdim=True) + 1e-15)
        return output(attn, y.transpose(1, 2).flatten(2).to(hidden_states.dtype))


class Joint:
    """Attention over one stream, or an image's and a text's, by `packed` where that is set and linears are fused."""

    packed: PackedAttention | None = None

    def attend(
        self,
        attn: Any,
        image: torch.Tensor,
        text: torch.Tensor | None,
        rotary: Rotary | None,
        bias: torch.Tensor | None = None,
    ) -> Any:
        """Image [B, L, C] and text [B, T, C], if any, -> the same; tables of all tokens, the text's first.

        The bias [B, 1, T + L, T + L] is added to the logits.
        """
        fused = hasattr(attn, "to_qkv") and (text is None or hasattr(attn, "to_added_qkv"))
        if self.packed is not None and fused:
            qkv = attn.to_qkv(image)
            added = None if text is None else attn.to_added_qkv(text)
            return _project_out(attn, *self.packed(attn, qkv, added_qkv=added, rotary=rotary))
        q, k, v = _project_joint(attn, image, "to_qkv", ("to_q", "to_k", "to_v"))
        q, k = _normed(attn, "norm_q", q), _normed(attn, "norm_k", k)
        tokens = 0
        if text is not None:
            tokens = text.shape[1]
            names = ("add_q_proj", "add_k_proj", "add_v_proj")
            tq, tk, tv = _project_joint(attn, text, "to_added_qkv", names)
            tq, tk = _normed(attn, "norm_added_q", tq), _normed(attn, "norm_added_k", tk)
            q, k, v = (torch.cat(pair, dim=1) for pair in ((tq, q), (tk, k), (tv, v)))
        y = attend_heads(q, k, v, rotary, bias)
        return _project_out(attn, y) if text is None else _project_out(attn, y[:, tokens:], y[:, :tokens])


class JointAttention(Joint, Processor):
    """Processor of attention over one stream, or an image's and a text's, fused (`to_qkv`, `to_added_qkv`) or not.

    A text stream, rotary positions, and norms of q and k are each optional.
    """

    STANDS_FOR = (
        "FluxAttnProcessor",
        "Flux2AttnProcessor",
        "JointAttnProcessor2_0",
        "LongCatImageAttnProcessor",
        "QwenDoubleStreamAttnProcessor2_0",
        "ZSingleStreamAttnProcessor",
    )
    PARTS = (*PLAIN, *_TEXT, *_NORMS)

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Rotary | None = None,
        freqs_cis: Rotary | None = None,
        encoder_hidden_states_mask: torch.Tensor | None = None,
    ) -> Any:
        """Image [B, L, C] and text [B, T, C], if any, -> the same. The block projects what has no projection here.

        Rotary tables have the name that the model's blocks give them. Masks are always None: the models that have one
        are run without padding.
        """
        assert attention_mask is None and encoder_hidden_states_mask is None
        rotary = freqs_cis if image_rotary_emb is None else image_rotary_emb
        return self.attend(attn, hidden_states, encoder_hidden_states, rotary)


def attend_heads(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, rotary: Rotary | None, bias: torch.Tensor | None = None
) -> torch.Tensor:
    """Attention in torch of q, k, v [B, L, H, D], the first two turned -> [B, L, C]."""
    if rotary is not None:
        q, k = rotate(q, rotary), rotate(k, rotary)
    q, k, v = (t.transpose(1, 2) for t in (q, k, v))
    return nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=bias).transpose(1, 2).flatten(2)


def _project_out(attn: Any, y: torch.Tensor, text: torch.Tensor | None = None) -> Any:
    """Image [B, L, C] and text [B, T, C], if any, through the projections that there are; the block has others."""
    to_out, to_add_out = getattr(attn, "to_out", None), getattr(attn, "to_add_out", None)
    image = y if to_out is None else to_out[0](y)
    if text is None:
        return image
    return image, text if to_add_out is None else to_add_out(text)


def _normed(attn: Any, name: str, x: torch.Tensor) -> torch.Tensor:
    """`x` through the norm of that name, where there is one."""
    norm = getattr(attn, name, None)
    return x if norm is None else norm(x)


def _project_joint(attn: Any, x: torch.Tensor, fused: str, names: tuple[str, str, str]) -> tuple[torch.Tensor, ...]:
    """[B, L, C] -> q, k, v [B, L, H, D]: norms and rotation come before heads are moved to the front."""
    return tuple(t.unflatten(-1, (attn.heads, -1)) for t in side_by_side(attn, x, fused, names))


def side_by_side(attn: Any, x: torch.Tensor, fused: str, names: Sequence[str]) -> Sequence[torch.Tensor]:
    """Outputs of the linears `names`, [B, L, C] each, from the fused linear where it is installed."""
    one = getattr(attn, fused, None)
    return [getattr(attn, name)(x) for name in names] if one is None else one(x).chunk(len(names), dim=-1)
