"""The attention ops of the contract: the one place that says what an ``svdq::SVDQAttention*`` node is.

    y = softmax( scale · q̂·k̂ᵀ + bias ) · v,   q̂ = round_act_dtype( rotate( q·rsqrt(mean(q²) + eps) · q_norm ) )

and k̂ likewise; without norm and rotation q̂ = q. Norm, rotation, logits and softmax are in f32, so is the weighted
sum, whose weights may be rounded to the act dtype; y is rounded once.

Op type = ``SVDQAttention``, where keys and values come from, and options (``SVDQAttentionJointNormedRotary``). q, k and
v stand as the linears leave them, side by side in one tensor: no slice or transpose is between a linear and its node.

Letters: B batch, L tokens of the queries' stream, T tokens of the other (text), H heads, Hkv key/value heads (H a
multiple of Hkv), D head size, S tokens of the rotary tables: L, and T + L in Joint. Standard library only.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field

from svdq_trt.contract.formats import Dtype
from svdq_trt.contract.ops import OPS, AttributeSpec, OpSpec

D_MULTIPLE = 8  # a head's rows of 16-bit values begin at 16 bytes


class Source(enum.Enum):
    """Where keys and values come from. The value is a part of the op type's name."""

    SELF = ""  # the queries' own tokens
    CROSS = "Cross"  # another stream, of which there are no queries
    JOINT = "Joint"  # both: one softmax over T + L keys, the added stream's tokens come first


class Option(enum.Enum):
    """What an op does beside attention. The value is a part of the op type's name."""

    NORMED = "Normed"  # RMS norm of q and k, per head
    ROTARY = "Rotary"  # pairs (2i, 2i + 1) of q and k turn by their token's angles
    MASKED = "Masked"  # a bias on the logits of each key


class Size(enum.Enum):
    """What a dimension counts. The value is its text."""

    B = "B"
    L = "L"
    T = "T"
    S = "S"
    D = "D"
    QKV = "(H+2·Hkv)·D"
    Q = "H·D"
    KV = "P·2·Hkv·D"


@dataclass(frozen=True)
class AttentionTensor:
    """One input or output."""

    name: str
    dims: tuple[Size, ...]
    dtype: Dtype
    meaning: str

    @property
    def shape(self) -> str:
        """In the letters above: ``[B, L, H·D]``."""
        return f"[{', '.join(d.value for d in self.dims)}]"


_TOKENS, _TEXT = (Size.B, Size.L), (Size.B, Size.T)

#: every input that an op may have; an op's come in this order
INPUTS: tuple[AttentionTensor, ...] = (
    AttentionTensor("qkv", (*_TOKENS, Size.QKV), Dtype.ACT, "q of each head, then k, then v"),
    AttentionTensor("q", (*_TOKENS, Size.Q), Dtype.ACT, "q of each head"),
    AttentionTensor("kv", (*_TEXT, Size.KV), Dtype.ACT, "P parts, one of which is read: k of each head, then v"),
    AttentionTensor("added_qkv", (*_TEXT, Size.QKV), Dtype.ACT, "as qkv, of the added stream"),
    AttentionTensor("q_norm", (Size.D,), Dtype.ACT, "weight of the norm of q"),
    AttentionTensor("k_norm", (Size.D,), Dtype.ACT, "weight of the norm of k"),
    AttentionTensor("added_q_norm", (Size.D,), Dtype.ACT, "weight of the norm of the added stream's q"),
    AttentionTensor("added_k_norm", (Size.D,), Dtype.ACT, "weight of the norm of the added stream's k"),
    AttentionTensor("cos", (Size.S, Size.D), Dtype.F32, "of each token's angles; each pair's value stands twice"),
    AttentionTensor("sin", (Size.S, Size.D), Dtype.F32, "likewise"),
    AttentionTensor("bias", _TEXT, Dtype.ACT, "added to the logits of each key"),
)
OUTPUTS: tuple[AttentionTensor, ...] = (
    AttentionTensor("y", (*_TOKENS, Size.Q), Dtype.ACT, "of the queries' stream"),
    AttentionTensor("added_y", (*_TEXT, Size.Q), Dtype.ACT, "of the added stream"),
)
ATTRIBUTES: tuple[AttributeSpec, ...] = (
    AttributeSpec("heads", "int", 0, "H"),
    AttributeSpec("kv_heads", "int", 0, "Hkv"),
    AttributeSpec("kv_part", "int", 0, "which of the P parts of kv is read (Cross only)"),
    AttributeSpec("scale", "float", 0.0, "of the logits, 1/sqrt(D) written out"),
    AttributeSpec("eps", "float", 0.0, "of the norms (Normed only)"),
)

_OF_SOURCE = {Source.SELF: ("qkv",), Source.CROSS: ("q", "kv"), Source.JOINT: ("qkv", "added_qkv")}
_OF_OPTION = {Option.NORMED: ("q_norm", "k_norm"), Option.ROTARY: ("cos", "sin"), Option.MASKED: ("bias",)}
#: attribute -> whether an op has it; others every op has
_ATTRIBUTE_OF = {
    "kv_part": lambda op: op.source is Source.CROSS,
    "eps": lambda op: op.normed,
}


@dataclass(frozen=True)
class AttentionOp:
    """One op type."""

    source: Source
    options: tuple[Option, ...] = field(default=())

    @property
    def op_type(self) -> str:
        """Name of the node."""
        return f"SVDQAttention{self.source.value}{''.join(o.value for o in self.options)}"

    @property
    def normed(self) -> bool:
        """Are there norms of q and k."""
        return Option.NORMED in self.options

    @property
    def rotary(self) -> bool:
        """Are q and k turned."""
        return Option.ROTARY in self.options

    @property
    def inputs(self) -> tuple[AttentionTensor, ...]:
        """All of them, always given."""
        names = {*_OF_SOURCE[self.source], *(name for option in self.options for name in _OF_OPTION[option])}
        if self.source is Source.JOINT and self.normed:
            names |= {"added_q_norm", "added_k_norm"}
        return tuple(t for t in INPUTS if t.name in names)

    @property
    def outputs(self) -> tuple[AttentionTensor, ...]:
        """y; Joint has one of each stream."""
        return OUTPUTS if self.source is Source.JOINT else OUTPUTS[:1]

    @property
    def attributes(self) -> tuple[AttributeSpec, ...]:
        """Numeric ones."""
        return tuple(a for a in ATTRIBUTES if a.name not in _ATTRIBUTE_OF or _ATTRIBUTE_OF[a.name](self))


_SUBSETS = ((), (Option.NORMED,), (Option.ROTARY,), (Option.NORMED, Option.ROTARY))
_ALL = (
    *(AttentionOp(Source.SELF, options) for options in _SUBSETS),
    *(AttentionOp(Source.CROSS, options) for options in ((), (Option.MASKED,))),
    *(AttentionOp(Source.JOINT, options) for options in _SUBSETS),
)
ATTENTION_OPS: dict[str, AttentionOp] = {op.op_type: op for op in _ALL}
#: the whole contract: what a plugin library has
EVERY_OP: dict[str, OpSpec | AttentionOp] = {**OPS, **ATTENTION_OPS}


@dataclass(frozen=True)
class AttentionSettings:
    """The attributes of one node; see ATTRIBUTES."""

    heads: int
    kv_heads: int
    scale: float
    kv_part: int = 0
    eps: float = 0.0

    @classmethod
    def plain(cls, heads: int, head_size: int, kv_heads: int | None = None, **more: float) -> AttentionSettings:
        """The usual scale, and as many key/value heads as heads unless said otherwise."""
        return cls(heads, kv_heads or heads, 1.0 / math.sqrt(head_size), **more)  # type: ignore[arg-type]

    def of(self, op: AttentionOp) -> dict[str, float]:
        """Those that `op` has, by name."""
        return {a.name: getattr(self, a.name) for a in op.attributes}
