"""A foreign model in our terms, which an importer returns, and ours in foreign ones, which an exporter does."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from svdq_trt.artifact.svdq_file import Node
from svdq_trt.base.errors import UnsupportedError
from svdq_trt.contract.formats import ACT_SHIFT, N_MULTIPLE, Activation
from svdq_trt.contract.weights import SvdqWeights
from svdq_trt.models import LinearGroup, ModelSpec

GELU_SHIFT = ACT_SHIFT[Activation.GELU_TANH]


@dataclass
class Imported:
    """Nodes and tensors of an artifact to be.

    Attributes:
        nodes: in the order of the model. tensors: the restored model's state dict.
        meta: of the artifact's header. kept: layers in 16 bit, by name, with the reason.
        notes: what a user should know, one sentence each.
    """

    nodes: list[Node] = field(default_factory=list)
    tensors: dict[str, Tensor] = field(default_factory=dict)
    meta: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def add_node(self, group: LinearGroup, weights: SvdqWeights, member_rows: tuple[int, ...], unsigned: bool) -> None:
        """One node and its tensors; SQNR is unknown."""
        shifted = unsigned and weights.format.unsigned_codes
        weights = replace(
            weights,
            activation=group.activation,
            act_unsigned=shifted,
            act_shift=GELU_SHIFT if shifted else 0.0,
        )
        self.nodes.append(Node.of(group.node, group.members, member_rows, weights))
        self.tensors.update(weights.named(group.node))

    def finish(self, spec: ModelSpec, groups: tuple[LinearGroup, ...]) -> None:
        """Put nodes into the model's order and describe the artifact.

        Raises:
            UnsupportedError: no node at all: the file has nothing quantized that this model quantizes.
        """
        if not self.nodes:
            raise UnsupportedError(f"model '{spec.name}'", "no quantized layer in the file", "at least one")
        order = {member: i for i, g in enumerate(groups) for member in g.members}
        self.nodes.sort(key=lambda node: (order[node.members[0]], node.name))
        four_bit = [n for n in self.nodes if n.format != "w4a16"] or self.nodes
        self.meta = {
            "model": spec.weights,
            "format": four_bit[0].format,
            "rank": max(n.rank for n in four_bit),
            "preset": "imported",
            "skip": [],
        } | self.meta


@dataclass
class Exported:
    """Another tool's file to be: tensors, metadata, text files beside it, and what a user should know."""

    tensors: dict[str, Tensor] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    files: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def member_rows(members: tuple[str, ...], n: tuple[int, ...], wanted: tuple[str, ...]) -> Tensor:
    """Rows of `wanted` in the stack of `members` with n rows each."""
    start = {name: sum(n[:i]) for i, name in enumerate(members)}
    size = dict(zip(members, n, strict=True))
    return torch.cat([start[name] + torch.arange(size[name]) for name in wanted])


def fits(weights: SvdqWeights, k: int) -> bool:
    """Can the op contract take it: K unpadded and N a multiple of 8."""
    return weights.k == k and weights.n % N_MULTIPLE == 0


def shifted_bias(weights: SvdqWeights, shift: float) -> Tensor:
    """The bias, in its dtype, that makes up for `shift` added to the quantized branch's x: b - W_residual·shift."""
    bias = weights.bias
    return (bias.double() - weights.residual().double().sum(1) * shift).to(bias.dtype)
