"""A foreign model in our terms: what an importer returns and the artifact is written from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from svdq_trt.artifact.svdq_file import Node
from svdq_trt.base.errors import UnsupportedError
from svdq_trt.contract.formats import ACT_SHIFT, INT4, N_MULTIPLE, Activation
from svdq_trt.interop.w4a4 import Linear4
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

    def add_node(self, group: LinearGroup, linear: Linear4, member_rows: tuple[int, ...], unsigned: bool) -> None:
        """One node and its tensors; SQNR is unknown."""
        t = linear.tensors
        shifted = unsigned and linear.format is INT4
        self.nodes.append(
            Node(
                group.node,
                group.members,
                member_rows,
                linear.format.name,
                group.activation.value,
                t["qweight"].shape[0],
                t["act_mul"].numel(),
                t["lora_down"].shape[0],
                math.nan,
                0.0,
                0.0,
                shifted,
                GELU_SHIFT if shifted else 0.0,
            )
        )
        self.tensors.update({f"{group.node}.{key}": tensor for key, tensor in t.items()})

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
            "model": spec.name,
            "format": four_bit[0].format,
            "rank": max(n.rank for n in four_bit),
            "preset": "imported",
            "skip": [],
        } | self.meta


def select_rows(linear: Linear4, at: Tensor) -> Linear4:
    """Some rows of a linear, in the order of `at`; what all rows share is copied: a file's tensors share nothing."""
    t = {key: tensor.clone() for key, tensor in linear.tensors.items() if key in ("act_mul", "lora_down")}
    t |= {key: tensor for key, tensor in linear.tensors.items() if key not in t}
    for key in ("qweight", "lora_up", "bias", "wscale2"):
        t[key] = t[key][at].contiguous()
    t["wscale"] = t["wscale"][:, at].contiguous()
    return Linear4(linear.format, t, {})


def member_rows(members: tuple[str, ...], n: tuple[int, ...], wanted: tuple[str, ...]) -> Tensor:
    """Rows of `wanted` in the stack of `members` with n rows each."""
    start = {name: sum(n[:i]) for i, name in enumerate(members)}
    size = dict(zip(members, n, strict=True))
    return torch.cat([start[name] + torch.arange(size[name]) for name in wanted])


def fits(linear: Linear4, k: int) -> bool:
    """Can the op contract take it: K unpadded and N a multiple of 8."""
    return linear.tensors["act_mul"].numel() == k and linear.tensors["qweight"].shape[0] % N_MULTIPLE == 0


def stack(linears: Sequence[Linear4]) -> Linear4:
    """Linears with the same act_mul as one, rows in this order; the low-rank branches stand side by side."""
    parts = [linear.tensors for linear in linears]
    tensors = {key: torch.cat([p[key] for p in parts]) for key in ("qweight", "bias", "wscale2", "lora_down")}
    tensors |= {
        "act_mul": parts[0]["act_mul"],
        "wscale": torch.cat([p["wscale"] for p in parts], dim=1),
        "lora_up": torch.block_diag(*(p["lora_up"] for p in parts)),
    }
    return Linear4(linears[0].format, tensors, {})
