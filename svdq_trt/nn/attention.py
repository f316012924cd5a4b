"""``torch.ops.svdq.attention`` and ``joint_attention``: the attention ops of the contract in torch.

Their arguments are inputs and attributes of svdq_trt/contract/attention.py; those left out select the op type that the
exporter writes. The CPU body follows the reference to output rounding; on CUDA the project's kernels run where there
is one, else torch's own attention. `use_packed` makes a model's processors call the ops, and `find_packed` says before
there are weights which of them will.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from svdq_trt.base.errors import ShapeError
from svdq_trt.contract.attention import (
    ATTENTION_OPS,
    ATTRIBUTES,
    D_MULTIPLE,
    OUTPUTS,
    AttentionOp,
    AttentionSettings,
    Option,
    Size,
    Source,
)
from svdq_trt.models.attention import RMS_NORMS, PackedAttention, Processor
from svdq_trt.models.recipe import LinearGroup, member_tensors

if TYPE_CHECKING:
    from svdq_trt.models import ModelSpec

#: inputs of each torch op, in order; the first is always given. What it is called depends on whether there is `kv`.
_ALONE = ("q", "kv", "q_norm", "k_norm", "cos", "sin", "bias")
_JOINT = ("qkv", "added_qkv", "q_norm", "k_norm", "added_q_norm", "added_k_norm", "cos", "sin")
#: attributes in the order of the arguments: those with a default last
_NUMBERS = sorted(ATTRIBUTES, key=lambda a: a.name in ("kv_part", "eps"))


@dataclass(frozen=True)
class Call:
    """One call of an op: its tensors by name, and its attributes."""

    op: AttentionOp
    tensors: dict[str, Tensor]
    settings: AttentionSettings

    @classmethod
    def of(cls, names: Sequence[str], arguments: Sequence[Any]) -> Call:
        """What a torch op's arguments say; trailing ones that are the default may be left out, as torch does."""
        tensors = {n: t for n, t in zip(names, arguments, strict=False) if t is not None}
        numbers = dict(zip((a.name for a in _NUMBERS), arguments[len(names) :], strict=False))
        if "added_qkv" in names:
            source = Source.JOINT
        elif "kv" in tensors:
            source = Source.CROSS
        else:
            source, tensors = Source.SELF, {"qkv": tensors.pop("q"), **tensors}
        signs = {Option.NORMED: "q_norm", Option.ROTARY: "cos", Option.MASKED: "bias"}
        op = AttentionOp(source, tuple(option for option, name in signs.items() if name in tensors))
        given, want = list(tensors), [t.name for t in op.inputs]
        if op.op_type not in ATTENTION_OPS or sorted(given) != sorted(want):
            raise ShapeError("svdq::attention", f"inputs {', '.join(given)}", "those of one of the contract's ops")
        return cls(op, {name: tensors[name] for name in want}, AttentionSettings(**numbers))

    @property
    def first(self) -> Tensor:
        """Qkv or q: it has the act dtype."""
        return next(iter(self.tensors.values()))

    @property
    def head_size(self) -> int:
        """D."""
        s = self.settings
        return self.first.shape[-1] // (s.heads if self.op.source is Source.CROSS else s.heads + 2 * s.kv_heads)

    @property
    def sizes(self) -> dict[Size, int]:
        """What each letter stands for, by the first input and the other stream's."""
        s, d, first = self.settings, self.head_size, self.first
        b, tokens = first.shape[:2]
        other = self.tensors.get("kv", self.tensors.get("added_qkv"))
        text = 0 if other is None else other.shape[1]
        kv = 2 * s.kv_heads * d
        parts = self.tensors["kv"].shape[-1] // kv if "kv" in self.tensors else 1
        return {
            Size.B: b,
            Size.L: tokens,
            Size.T: text,
            Size.S: tokens + text,
            Size.D: d,
            Size.QKV: s.heads * d + kv,
            Size.Q: s.heads * d,
            Size.KV: parts * kv,
        }

    def check(self) -> None:
        """Raise ShapeError unless every input has the shape that the first one and the attributes ask for."""
        s = self.settings
        if s.heads <= 0 or s.kv_heads <= 0 or s.heads % s.kv_heads:
            raise ShapeError("svdq::attention", f"{s.heads} heads, {s.kv_heads} of keys", "a multiple of the keys'")
        if self.first.dim() != 3 or self.head_size == 0 or self.head_size % D_MULTIPLE:
            shape = list(self.first.shape)
            raise ShapeError("svdq::attention", f"{shape} for {s.heads} heads", f"heads of a multiple of {D_MULTIPLE}")
        for spec in self.op.inputs:
            want = [self.sizes[dim] for dim in spec.dims]
            if list(self.tensors[spec.name].shape) != want:
                got = list(self.tensors[spec.name].shape)
                raise ShapeError(f"svdq::attention, input {spec.name}", str(got), f"{want}, {spec.shape}")
        parts = self.sizes[Size.KV] // (2 * s.kv_heads * self.head_size)
        if not 0 <= s.kv_part < parts:
            raise ShapeError("svdq::attention", f"kv_part {s.kv_part}", f"0 to {parts - 1}, as kv has {parts} parts")


def schema(names: Sequence[str]) -> str:
    """The signature of a torch op with these inputs as torch writes it; Joint's has two outputs."""
    joint = "added_qkv" in names
    needed = names[: 2 if joint else 1]
    numbers = [
        ("SymInt " if a.kind == "int" else "float ")
        + a.name
        + (f"={a.default}" if a.name in ("kv_part", "eps") else "")
        for a in _NUMBERS
    ]
    tensors = [f"Tensor {name}" if name in needed else f"Tensor? {name}" for name in names]
    return f"({', '.join((*tensors, *numbers))}) -> {'(Tensor, Tensor)' if joint else 'Tensor'}"


def reference(call: Call) -> tuple[Tensor, ...]:
    """The op's body in torch, on any device: y [B, L, H·D], and in Joint added_y [B, T, H·D], in the act dtype.

    On the CPU the products are in f32; on a GPU torch's fused attention takes and rounds what its kernels do.

    Raises:
        ShapeError: inputs that do not fit each other.
    """
    call.check()
    s, act = call.settings, call.first.dtype
    q, k, v = _heads(call)
    inner = act if call.first.is_cuda else torch.float32
    bias = call.tensors.get("bias")
    mask = None if bias is None else bias[:, None, None].expand(-1, 1, q.shape[1], -1).to(inner)
    q, k, v = (t.to(inner).transpose(1, 2) for t in (q, k, v))
    y = F.scaled_dot_product_attention(q, k, v, mask, scale=s.scale, enable_gqa=s.heads != s.kv_heads)
    y = y.transpose(1, 2).flatten(2).to(act)
    if call.op.source is not Source.JOINT:
        return (y.contiguous(),)
    added = call.sizes[Size.T]
    return y[:, added:].clone(), y[:, :added].clone()


def _heads(call: Call) -> tuple[Tensor, ...]:
    """q, k, v of all streams, [B, tokens, heads, D] each, normed, turned and rounded."""
    h, kv, tensors = call.settings.heads, call.settings.kv_heads, call.tensors
    if call.op.source is Source.CROSS:
        q = tensors["q"].unflatten(-1, (h, -1))
        both = tensors["kv"].unflatten(-1, (-1, 2, kv, q.shape[-1]))[:, :, call.settings.kv_part]
        return q, both[:, :, 0], both[:, :, 1]
    names = ("added_qkv", "qkv") if call.op.source is Source.JOINT else ("qkv",)
    streams = []
    for name in names:
        x = tensors[name].unflatten(-1, (h + 2 * kv, -1))
        q, k, v = x[:, :, :h], x[:, :, h : h + kv], x[:, :, h + kv :]
        if call.op.normed:
            prefix = name.removesuffix("qkv")
            q, k = (_normed(t, tensors[f"{prefix}{n}_norm"], call.settings.eps) for t, n in ((q, "q"), (k, "k")))
        streams.append((q, k, v))
    q, k, v = (torch.cat(parts, dim=1) for parts in zip(*streams, strict=True))
    if call.op.rotary:
        q, k = (_turned(t, tensors["cos"], tensors["sin"]) for t in (q, k))
    return q.to(v.dtype), k.to(v.dtype), v


def _normed(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    x = x.float()
    turned = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    return x * cos[:, None] + turned * sin[:, None]


def _fake(call: Call) -> tuple[Tensor, ...]:
    sizes = call.sizes
    return tuple(call.first.new_empty([sizes[dim] for dim in out.dims]) for out in OUTPUTS[: len(call.op.outputs)])


def _cuda(call: Call) -> tuple[Tensor, ...]:
    from svdq_trt.nn import capi

    call.check()
    return capi.attention(call) if capi.supports_attention(call) else reference(call)


def as_kernel(names: Sequence[str], run: Callable[[Call], tuple[Tensor, ...]]) -> Callable[..., Any]:
    """`run` as torch calls an implementation: with all arguments in a row; one output comes alone."""

    def kernel(*arguments: Any) -> Any:
        outputs = run(Call.of(names, arguments))
        return outputs if len(outputs) > 1 else outputs[0]

    return kernel


def _define(name: str, names: Sequence[str]) -> Any:
    op = torch.library.custom_op(
        f"svdq::{name}", as_kernel(names, reference), mutates_args=(), device_types="cpu", schema=schema(names)
    )
    op.register_fake(as_kernel(names, _fake))
    op.register_kernel("cuda")(as_kernel(names, _cuda))
    return op


attention = _define("attention", _ALONE)
joint_attention = _define("joint_attention", _JOINT)
#: the torch ops with the names of their inputs
TORCH_OPS = {torch.ops.svdq.attention.default: _ALONE, torch.ops.svdq.joint_attention.default: _JOINT}


def apply(call: Call) -> tuple[Tensor, ...]:
    """The op of a call through torch's dispatcher: y, or y and added_y."""
    numbers = [getattr(call.settings, a.name) for a in _NUMBERS]
    if call.op.source is Source.JOINT:
        y: tuple[Tensor, ...] = torch.ops.svdq.joint_attention(*(call.tensors.get(n) for n in _JOINT), *numbers)
        return y
    return (torch.ops.svdq.attention(call.first, *(call.tensors.get(n) for n in _ALONE[1:]), *numbers),)


# ---- in a model ------------------------------------------------------------------------------------------------------


def use_packed(module: nn.Module, head_sizes: Collection[int] | None, run: PackedAttention | None = None) -> list[str]:
    """Let attentions with one of these head sizes call the ops, where their q, k and v come from fused linears.

    Args:
        head_sizes: None: any.
        run: what they call; by default the ops.

    Returns:
        Names of the attentions whose processors were told. One that has norms other than RMS norms of q and k per head
        keeps torch's attention, and so does one whose linears are not fused (--skip).
    """
    told = []
    for name, part in module.named_modules():
        processor = getattr(part, "processor", None)
        if not isinstance(processor, Processor) or _norms(part) is None:
            continue
        if head_sizes is None or head_size_of(part) in head_sizes:
            processor.packed = run or packed
            told.append(name)
    return told


def find_packed(spec: ModelSpec, skip: Sequence[str] = ()) -> dict[str, int]:
    """Names of the attentions that call the ops in a model quantized with this `skip`, each with its D.

    The model runs on meta, wrapped as it is exported, with modules that have only a size in the places of its nodes.
    """
    module = spec.build(tables=False)
    groups = spec.groups(module, skip)
    for group, node in [(group, _Sized(module, group)) for group in groups]:
        spec.install(module, group, node)
    spec.wrap(module)
    names = {part: name for name, part in module.named_modules()}
    found: dict[str, int] = {}

    def seen(attn: Any, first: Tensor, **more: Any) -> tuple[Tensor, ...]:
        found[names[attn]] = head_size_of(attn)
        return packed(attn, first, **more)

    if use_packed(module, None, seen):
        spec.trace(module)
    return found


class _Sized(nn.Module):
    """Stands in the place of a node, on meta: its y, but for the values."""

    def __init__(self, module: nn.Module, group: LinearGroup) -> None:
        super().__init__()
        rows = sum(len(weight) for weight in member_tensors(module, group)[0])
        self.features = group.activation.n_out(rows)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N], or [..., N/2] for a gated activation."""
        return x.new_empty((*x.shape[:-1], self.features))


def head_size_of(attn: Any) -> int:
    """D of a diffusers attention."""
    return int(attn.inner_dim) // int(attn.heads)


def packed(
    attn: Any,
    first: Tensor,
    *,
    kv: Tensor | None = None,
    kv_part: int = 0,
    bias: Tensor | None = None,
    added_qkv: Tensor | None = None,
    rotary: Sequence[Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """Attention of `attn` on what its fused linears give; see svdq_trt.models.attention.PackedAttention."""
    norms = _norms(attn)
    assert norms is not None
    inputs: dict[str, Tensor | None] = {"kv": kv, "bias": bias, "added_qkv": added_qkv}
    inputs |= {
        name: _weight(norm).to(first.dtype)
        for name, norm in norms.items()
        if added_qkv is not None or "added" not in name
    }
    if rotary is not None:
        inputs |= {"cos": rotary[0], "sin": rotary[1]}
    names = _ALONE if added_qkv is None else _JOINT
    eps = next((float(norm.eps) for norm in norms.values()), 0.0)
    kv_heads = getattr(attn, "kv_heads", attn.heads)
    settings = AttentionSettings.plain(attn.heads, head_size_of(attn), kv_heads, kv_part=kv_part, eps=eps)
    numbers = [getattr(settings, a.name) for a in _NUMBERS]
    return apply(Call.of(names, [first, *(inputs.get(name) for name in names[1:]), *numbers]))


def _norms(attn: Any) -> dict[str, Any] | None:
    """The norms of q and k by their inputs' names, none or all of them; None where an op can't stand for them."""
    processor = getattr(attn, "processor", None)
    if isinstance(processor, Processor) and not processor.NORMS_IN_OP:
        return {}
    streams = {"": ("norm_q", "norm_k"), "added_": ("norm_added_q", "norm_added_k")}
    if not hasattr(attn, "to_added_qkv"):
        del streams["added_"]
    found = {
        f"{prefix}{which}_norm": getattr(attn, name, None)
        for prefix, names in streams.items()
        for which, name in zip("qk", names, strict=True)
    }
    norms = {name: norm for name, norm in found.items() if norm is not None}
    if not norms:
        return {}
    fit = len(norms) == len(found) and all(_is_rms(norm, head_size_of(attn)) for norm in norms.values())
    return norms if fit and len({float(norm.eps) for norm in norms.values()}) == 1 else None


def _weight(norm: Any) -> Tensor:
    """[D], by which an RMS norm multiplies."""
    weight: Tensor = norm.weight
    added = RMS_NORMS[type(norm).__name__]
    return weight + added if added else weight


def _is_rms(norm: Any, head_size: int) -> bool:
    """Is it an RMS norm of one head, with a weight and no bias: torch's or diffusers'."""
    weight = getattr(norm, "weight", None)
    rms = type(norm).__name__ in RMS_NORMS and getattr(norm, "bias", None) is None and norm.eps is not None
    return rms and weight is not None and weight.numel() == head_size
