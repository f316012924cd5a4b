"""An artifact's nodes as linears under diffusers' names, for makers whose files have no stacked or split ones.

A node's rows go to its members. Nodes that share a member by columns become one linear again: codes, scales and
smoothing side by side along K, low-rank factors as a block-diagonal pair. Two halves of nvfp4 have a tensor scale each,
the linear has one: the smoothing of the second takes the ratio.

Letters: N output features, K input features, R rank.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from svdq_trt.artifact.svdq_file import Artifact, Node
from svdq_trt.base.errors import UnsupportedError
from svdq_trt.contract.weights import SvdqWeights
from svdq_trt.interop.node_hints import hint_for
from svdq_trt.interop.result import GELU_SHIFT, member_rows, shifted_bias
from svdq_trt.models import ModelSpec

Exact = dict[str, Any]


@dataclass
class Separate:
    """A model in single linears.

    Attributes:
        linears: by name; `act_unsigned` says which take u4 codes after GELU's shift.
        biased: names of linears that have a bias in diffusers. dense: all other tensors.
        hints: by node, what its linears cannot hold. notes: one sentence each.
    """

    linears: dict[str, SvdqWeights] = field(default_factory=dict)
    biased: set[str] = field(default_factory=set)
    dense: dict[str, Tensor] = field(default_factory=dict)
    hints: dict[str, Exact] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def note_node(self, node: Node, loaded: Artifact, as_read: SvdqWeights) -> None:
        """Keep what makes the node again of its tensors as a reader has them."""
        if hint := hint_for(node.weights(loaded.tensors), as_read):
            self.hints[node.name] = hint

    def dense_halves(self, name: str, a: SvdqWeights, b: SvdqWeights) -> None:
        """Make two halves of a linear one in 16 bit."""
        dtype = a.act_mul.dtype
        self.dense[f"{name}.weight"] = torch.cat((a.dequantize(), b.dequantize()), 1).to(dtype)
        if name in self.biased:
            self.dense[f"{name}.bias"] = (a.bias.float() + b.bias.float()).to(dtype)

    def dense_convolution(self, name: str, module: nn.Module, weights: SvdqWeights) -> None:
        """Make a convolution of 1 x 1 one in 16 bit: these makers quantize linears alone."""
        shape, dtype = module.get_parameter(f"{name}.weight").shape, weights.act_mul.dtype
        self.dense[f"{name}.weight"] = weights.dequantize()[:, : shape[1]].reshape(shape).to(dtype)
        if name in self.biased:
            self.dense[f"{name}.bias"] = weights.bias
        self.notes.append(f"{name}: in 16 bit, as it is a convolution.")

    def to_dense(self, name: str, dtype: torch.dtype) -> None:
        """Make a linear one in 16 bit."""
        weights = self.linears.pop(name)
        assert not weights.act_unsigned
        self.dense[f"{name}.weight"] = weights.dequantize().to(dtype)
        if name in self.biased:
            self.dense[f"{name}.bias"] = weights.bias


def separate(loaded: Artifact, spec: ModelSpec, unsigned: bool) -> Separate:
    """All of an artifact in single linears.

    Args:
        unsigned: whether the file may have linears with unsigned activation codes.

    Raises:
        UnsupportedError: two halves of a linear in different formats.
    """
    module = spec.build(device="meta")
    columns = {g.node: g.columns for g in spec.groups(module)}
    names = {name for name, _ in module.named_parameters()}
    out = Separate(biased={name.removesuffix(".bias") for name in names if name.endswith(".bias")})
    halves: dict[str, list[Node]] = {}
    used: set[str] = set()
    signed = 0
    for node in loaded.nodes:
        weights = node.weights(loaded.tensors)
        used |= weights.named(node.name).keys()
        if columns.get(node.name) is not None:
            halves.setdefault(node.members[0], []).append(node)
            continue
        if node.act_unsigned and not (unsigned and node.act_shift == GELU_SHIFT and out.biased >= set(node.members)):
            weights = as_signed(weights)
            out.note_node(node, loaded, weights)
            signed += 1
        if not isinstance(module.get_submodule(node.members[0]), nn.Linear):
            out.dense_convolution(node.members[0], module, weights)
            continue
        for member in node.members:
            at = member_rows(node.members, node.member_rows, (member,))
            out.linears[member] = weights if len(node.members) == 1 else weights.rows(at)
    for member, nodes in halves.items():
        pair = sorted(nodes, key=lambda node: (columns[node.name] or (0, 0))[0])
        a, b = (as_signed(node.weights(loaded.tensors)) for node in pair)
        if not _one_ratio(a, b):
            out.notes.append(f"{member}: in 16 bit, as its halves have scales of rows that differ.")
            out.dense_halves(member, a, b)
            continue
        whole, note = joined(member, a, b)
        out.linears[member] = whole
        out.notes += [note] if note else []
        signed += sum(node.act_unsigned for node in pair)
        for node in pair:
            out.note_node(node, loaded, whole.columns(*columns[node.name] or (0, whole.k)))
    out.dense |= {name: tensor for name, tensor in loaded.tensors.items() if name not in used}
    for table in spec.tables:
        out.dense[table.name] = table.join({name: out.dense.pop(name) for name in table.parameters})
    if signed:
        out.notes.append(f"{signed} linears behind a GELU take signed activation codes there, with one bit less.")
    return out


def as_signed(weights: SvdqWeights) -> SvdqWeights:
    """The same with signed activation codes: the bias takes the shift back."""
    if not weights.act_unsigned:
        return weights
    bias = shifted_bias(weights, -weights.act_shift)
    return replace(weights, bias=bias, act_unsigned=False, act_shift=0.0)


def _one_ratio(a: SvdqWeights, b: SvdqWeights) -> bool:
    """Whether one number makes the scales of b's rows those of a's."""
    return torch.equal(a.wscale2, b.wscale2) or all(bool((w.wscale2 == w.wscale2[0]).all()) for w in (a, b))


def joined(member: str, a: SvdqWeights, b: SvdqWeights) -> tuple[SvdqWeights, str]:
    """Two halves [N, K1] and [N, K2] as one linear [N, K1 + K2], and what that changed; "" for nothing."""
    if a.format is not b.format:
        raise UnsupportedError(f"'{member}'", f"halves of {a.format.name} and {b.format.name}", "one format")
    note = ""
    if not torch.equal(a.wscale2, b.wscale2):
        ratio = b.wscale2[0] / a.wscale2[0]
        b = replace(b, act_mul=(b.act_mul.float() * ratio).to(b.act_mul.dtype))
        note = f"{member}: one tensor scale for both halves; the smoothing of the second takes the ratio."
    whole = replace(
        a,
        qweight=torch.cat((a.qweight, b.qweight), 1),
        wscale=torch.cat((a.wscale, b.wscale)),
        act_mul=torch.cat((a.act_mul, b.act_mul)),
        lora_down=torch.block_diag(a.lora_down, b.lora_down),
        lora_up=torch.cat((a.lora_up, b.lora_up), 1),
        bias=(a.bias.float() + b.bias.float()).to(a.bias.dtype),
    )
    return whole, note
