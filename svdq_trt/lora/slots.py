"""LoRA slots: rank that is reserved when the graph is made and filled when the engine runs.

In a graph with slots, ``lora_down`` [R + S, K] and ``lora_up`` [N, R + S] of every node are *inputs* of the graph, not
constants: the base's R ranks, then S reserved ones that are zero until a LoRA is put there. A linear kept in 16 bit
gets such a branch of its own with R = 0. The op contract does not change, and no address changes with the LoRA, so CUDA
graphs stay valid.

The inputs' values without a LoRA are in a file beside the graph: ``lora_slots.safetensors`` has the base's factors and,
in its header, the list of slots. svdq_trt/runtime/lora.py feeds them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import msgspec
import torch
import torch.nn.functional as F
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from svdq_trt.artifact.tensor_file import save_tensors
from svdq_trt.base.errors import ArtifactError, ShapeError
from svdq_trt.base.files import parse_json
from svdq_trt.contract.formats import R_MAX, R_MULTIPLE
from svdq_trt.lora.factors import NodeRows
from svdq_trt.lora.read import Shapes
from svdq_trt.models.recipe import weight_layers
from svdq_trt.nn.linear import SVDQLinear

FILE = "lora_slots.safetensors"
VERSION = 1
_KEY = "svdq_lora_slots"
_SIZE_MAX = 1 << 18  # of a layer; no model here has more than 2^17 features
_ELEMENTS_MAX = 1 << 33  # of all inputs; FLUX.1 with rank 1024 takes some 2^32


@dataclass(frozen=True)
class Slot:
    """The branch of one node (or 16-bit linear) that can be filled.

    Attributes:
        rows: rows of its members. base: R, 0 for a 16-bit linear. reserved: S of this node: the rank asked for, once
            per member, as each has a down factor of its own; less where the kernels do not take that much.
    """

    rows: NodeRows
    base: int
    reserved: int

    @property
    def rank(self) -> int:
        """Rank R + S of the inputs."""
        return self.base + self.reserved

    @property
    def down_name(self) -> str:
        """Name of the input [rank, K]."""
        return f"{self.rows.name}.lora_down"

    @property
    def up_name(self) -> str:
        """Name of the input [N, rank]."""
        return f"{self.rows.name}.lora_up"


@dataclass(frozen=True)
class SlotTable:
    """All slots of a graph.

    Attributes:
        model: registry name. dtype: of the inputs, "float16" or "bfloat16". rank: reserved per linear.
        shapes: weight shape of every linear and convolution of the model; convolutions have no slot.
    """

    model: str
    dtype: str
    rank: int
    slots: tuple[Slot, ...]
    shapes: dict[str, tuple[int, ...]]

    def input_names(self) -> list[str]:
        """Names of the graph's LoRA inputs, in order."""
        return [name for slot in self.slots for name in (slot.down_name, slot.up_name)]


class SlottedLinear(nn.Linear):
    """A 16-bit linear with a low-rank branch beside it: y = x·Wᵀ + bias + (x·lora_downᵀ)·lora_upᵀ."""

    lora_down: Tensor
    lora_up: Tensor

    @classmethod
    def of(cls, linear: nn.Linear, rank: int) -> SlottedLinear:
        """A slotted linear with the same weight and bias as `linear`."""
        new = cls(linear.in_features, linear.out_features, linear.bias is not None, device="meta")
        new.weight, new.bias = linear.weight, linear.bias
        new.register_buffer("lora_down", linear.weight.new_zeros(rank, linear.in_features))
        new.register_buffer("lora_up", linear.weight.new_zeros(linear.out_features, rank))
        return new

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        return super().forward(x) + F.linear(F.linear(x, self.lora_down), self.lora_up)


def install_slots(
    module: nn.Module, rows: Sequence[NodeRows], model: str, dtype: torch.dtype, rank: int, shapes: Shapes
) -> SlotTable:
    """Add `rank` zero ranks per linear to every node and every 16-bit linear of a quantized module.

    Args:
        module: restored from an artifact; changed in place. rows: rows of each node's members.
        model: registry name. dtype: act dtype. rank: S, a multiple of 16.
        shapes: see SlotTable.

    Raises:
        ShapeError: a node whose rank would exceed what the kernels take.
    """
    slots: list[Slot] = []
    for one in rows:
        node: Any = module.get_submodule(one.name)
        assert isinstance(node, SVDQLinear)
        room = (R_MAX - node.rank) // R_MULTIPLE * R_MULTIPLE
        if rank > room:
            raise ShapeError(one.name, f"rank {node.rank} + {rank} slots", f"at most {R_MAX}", "Lower --lora-slots.")
        slot = Slot(one, node.rank, min(rank * len(one.first), room))
        grown = node.weights.with_rank(slot.rank)
        node.lora_down, node.lora_up = grown.lora_down, grown.lora_up
        slots.append(slot)
    for name, layer in weight_layers(module).items():
        if not isinstance(layer, nn.Linear):
            continue
        parent, _, leaf = name.rpartition(".")
        setattr(module.get_submodule(parent), leaf, SlottedLinear.of(layer, rank))
        slots.append(Slot(NodeRows(name, {name: 0}, layer.out_features, layer.in_features), 0, rank))
    return SlotTable(model, str(dtype).removeprefix("torch."), rank, tuple(slots), dict(shapes))


def base_factors(module: nn.Module, table: SlotTable) -> dict[str, Tensor]:
    """The base's ranks of a module with slots installed, by input name."""
    tensors: dict[str, Tensor] = {}
    for slot in table.slots:
        if slot.base:
            node: Any = module.get_submodule(slot.rows.name)
            own = node.weights.with_rank(slot.base).contiguous()
            tensors |= {slot.down_name: own.lora_down, slot.up_name: own.lora_up}
    return tensors


def save_table(path: Path, table: SlotTable, base: Mapping[str, Tensor]) -> None:
    """Write lora_slots.safetensors: the table, and the base's ranks."""
    save_tensors(path, base, {_KEY: json.dumps({"version": VERSION, **asdict(table)})})


def load_table(path: Path) -> tuple[SlotTable, dict[str, Tensor]]:
    """Read lora_slots.safetensors: the table and the base's factors, memory-mapped.

    Raises:
        ArtifactError: missing, malformed, sizes that no build writes, or tensors that do not fit the table.
    """
    again = "Build the engine again."
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get(_KEY)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(str(path), str(error), "the file of an engine with --lora-slots", again) from None
    try:
        found = msgspec.convert(parse_json(header or "null"), _Header)
    except ValueError as error:  # msgspec's are ValueErrors, too
        raise ArtifactError(str(path), f"no usable header ({error!s:.200})", "svdq-trt's own file", again) from None
    if found.version != VERSION:
        raise ArtifactError(str(path), f"version {found.version}", str(VERSION), again)
    table = SlotTable(found.model, found.dtype, found.rank, found.slots, found.shapes)
    misfit = _misfit(table) or next(filter(None, map(_slot_misfit, table.slots)), "")
    if misfit:
        raise ArtifactError(str(path), f"no usable header ({misfit:.200})", "svdq-trt's own file", again)
    for slot in table.slots:
        want = {slot.down_name: (slot.base, slot.rows.k), slot.up_name: (slot.rows.n, slot.base)} if slot.base else {}
        for name, shape in want.items():
            if name not in tensors or tuple(tensors[name].shape) != shape:
                raise ArtifactError(f"{path}: {name}", "missing or of another shape", str(shape), again)
            if not tensors[name].is_floating_point():
                raise ArtifactError(f"{path}: {name}", str(tensors[name].dtype), table.dtype, again)
    return table, tensors


@dataclass(frozen=True)
class _Header:
    """The header's JSON: a SlotTable and a version."""

    version: int
    model: str
    dtype: Literal["float16", "bfloat16"]
    rank: int
    slots: tuple[Slot, ...]
    shapes: dict[str, tuple[int, ...]]


def _misfit(table: SlotTable) -> str:
    """What is wrong with the table as a whole; empty for nothing."""
    names = [slot.rows.name for slot in table.slots]
    if not names:
        return "no slots"
    if len(set(names)) < len(names):
        return "one node twice"
    if any(not 0 < size <= _SIZE_MAX for shape in table.shapes.values() for size in shape):
        return "a shape that no layer has"
    elements = sum((slot.rows.n + slot.rows.k) * slot.rank for slot in table.slots)
    return f"{elements} numbers to fill" if elements > _ELEMENTS_MAX else ""


def _slot_misfit(slot: Slot) -> str:
    """What is wrong with a slot; empty for nothing."""
    rows, where = slot.rows, f"slot {slot.rows.name!r:.80}"
    if not (0 < rows.n <= _SIZE_MAX and 0 < rows.k <= _SIZE_MAX):
        return f"{where}: size {rows.n} x {rows.k}"
    if slot.base < 0 or slot.reserved <= 0 or slot.reserved % R_MULTIPLE or slot.base % R_MULTIPLE or slot.rank > R_MAX:
        return f"{where}: ranks {slot.base} + {slot.reserved}"
    if not rows.first or any(not 0 <= row < rows.n for row in rows.first.values()):
        return f"{where}: rows of its members"
    if rows.columns is not None and rows.columns[1] - rows.columns[0] != rows.k:
        return f"{where}: columns {rows.columns}"
    if rows.rows is not None and (len(rows.first) > 1 or sum(stop - start for start, stop in rows.rows) != rows.n):
        return f"{where}: rows {rows.rows}"
    return ""
