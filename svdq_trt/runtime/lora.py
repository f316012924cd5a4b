"""LoRA at run time: the graph's low-rank inputs in one buffer, whose reserved ranks are filled and emptied.

    flat buffer    | down of slot 0 [R + S, K] | up of slot 0 [N, R + S] | down of slot 1 | ...
                       base rows | reserved        base columns | reserved

Every input is a view of the buffer and keeps its address. A set of LoRAs is laid out once as the reserved parts
alone: all downs, then all ups at strength 1. Swapping it in takes one multiplication of the ups by the strength and two
scattered copies, in pieces of 128 bytes for the downs, whose rows are contiguous, and of 32 bytes for the ups, as
16 ranks are the smallest piece of one of their rows. Letters: N output features, K input features, R base rank,
S reserved rank.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svdq_trt.artifact.manifest import CutEntry, SlotsEntry
from svdq_trt.base.errors import ArtifactError, RangeError, ShapeError, UnsupportedError, UsageError
from svdq_trt.contract.formats import R_MULTIPLE
from svdq_trt.lora.changes import Additive, Change
from svdq_trt.lora.factors import unit_factors
from svdq_trt.lora.names import name_table
from svdq_trt.lora.read import LoraFile, read_lora, refuse_partial
from svdq_trt.lora.slots import Slot, SlotTable, load_table
from svdq_trt.models import get_model

_ALIGN = 128  # elements between starts of tensors: 256 bytes
_DOWN, _UP = 64, 16  # elements per piece

#: one file at strength 1, or several, each with its own
Loras = str | Path | Sequence[tuple[str | Path, float]] | None


@dataclass(frozen=True)
class LoraSet:
    """LoRA files laid out for one engine's slots, on its device. Made by `LoraSlots.prepare`.

    Attributes:
        files: its LoRA files, in order. strengths: one per file; multiplied by the one given at the swap.
        cut: slots where a change of full rank was cut to the rank that there is, with what was lost.
    """

    files: tuple[LoraFile, ...]
    strengths: tuple[float, ...]
    downs: Tensor
    ups: tuple[Tensor, ...]  # per file, at strength 1
    largest: tuple[float, ...]  # |up| per file
    table: SlotTable  # of the engine that it is laid out for
    cut: tuple[CutEntry, ...] = ()


class LoraSlots:
    """The low-rank inputs of one engine. Not thread-safe, and must not be changed while a run reads them.

    Attributes:
        table: the slots. views: input name -> tensor on the device; addresses never change.
        current: the set that is swapped in, None for none.

    Args:
        path: lora_slots.safetensors. device: where the engine reads its inputs.

    Raises:
        ArtifactError: see svdq_trt.lora.slots.load_table.
    """

    def __init__(self, path: Path, device: torch.device | str = "cpu") -> None:
        self.table, base = load_table(path)
        self.device = torch.device(device)
        self.dtype: torch.dtype = getattr(torch, self.table.dtype)
        self._names: Any = None
        self.current: LoraSet | None = None
        places: dict[str, tuple[int, tuple[int, int]]] = {}
        size = 0
        for slot in self.table.slots:
            for name, shape in ((slot.down_name, (slot.rank, slot.rows.k)), (slot.up_name, (slot.rows.n, slot.rank))):
                places[name] = size, shape
                size += -(-math.prod(shape) // _ALIGN) * _ALIGN
        host = torch.zeros(size, dtype=self.dtype)
        for slot in self.table.slots:
            if slot.base:
                _view(host, places[slot.down_name])[: slot.base] = base[slot.down_name]
                _view(host, places[slot.up_name])[:, : slot.base] = base[slot.up_name]
        self._flat = host.to(self.device)
        self.views = {name: _view(self._flat, place) for name, place in places.items()}
        starts = [(slot, places[slot.down_name][0], places[slot.up_name][0]) for slot in self.table.slots]
        self._down_index = torch.cat([_down_pieces(slot, down) for slot, down, _ in starts]).to(self.device)
        self._up_index = torch.cat([_up_pieces(slot, up) for slot, _, up in starts]).to(self.device)

    def prepare(self, loras: Loras, allow_partial: bool = False) -> LoraSet:
        """Read LoRA files and lay them out. This takes seconds: do it in advance for LoRAs that are swapped often.

        Args:
            loras: a file, or (file, strength) pairs. allow_partial: leave out what does not fit.

        Raises:
            ArtifactError: a file that is malformed, or does not fit this model (unless `allow_partial`).
            ShapeError: more rank than is reserved; says how many slots it takes.
        """
        pairs = [(loras, 1.0)] if isinstance(loras, str | Path) else list(loras or ())
        files = [self._read(Path(path), allow_partial) for path, _ in pairs]
        by_layer = [file.by_layer() for file in files]
        downs = self._staging(self._down_index, _DOWN)
        ups = [self._staging(self._up_index, _UP) for _ in files]
        need, tightest = 0, self.table.slots[0]
        cut: list[CutEntry] = []
        at_down = at_up = 0
        for slot in self.table.slots:
            down_size = -(-slot.reserved * slot.rows.k // _DOWN) * _DOWN
            down_part = downs[at_down : at_down + slot.reserved * slot.rows.k].view(slot.reserved, slot.rows.k)
            used = 0
            for layers, up in zip(by_layer, ups, strict=True):
                own_down, own_up, lost = unit_factors(layers, slot.rows, self.dtype, slot.reserved - used)
                if round(lost, 5):
                    cut.append(CutEntry(slot.rows.name, len(own_down), round(lost, 5)))
                end = used + len(own_down)
                if end <= slot.reserved:
                    down_part[used:end] = own_down
                    up[at_up : at_up + slot.rows.n * slot.reserved].view(slot.rows.n, -1)[:, used:end] = own_up
                used = end
            if used > max(slot.reserved, need):
                need, tightest = used, slot
            at_down, at_up = at_down + down_size, at_up + slot.rows.n * slot.reserved
        if need:
            slots = -(-need // (len(tightest.rows.first) * R_MULTIPLE)) * R_MULTIPLE
            raise ShapeError(
                tightest.rows.name,
                f"LoRAs that take rank {need}",
                f"at most {tightest.reserved}",
                f"Build the engine with --lora-slots {slots}, or the LoRAs in with --lora.",
            )
        largest = tuple(float(up.abs().max()) for up in ups)
        return LoraSet(
            tuple(files),
            tuple(float(s) for _, s in pairs),
            downs.to(self.device),
            tuple(up.to(self.device) for up in ups),
            largest,
            self.table,
            tuple(cut),
        )

    def fill(self, loras: LoraSet, strength: float = 1.0) -> None:
        """Swap a prepared set in, on the current stream; the host does not wait.

        Args:
            strength: multiplies every file's own strength; 0 and below are allowed.

        Raises:
            UsageError: a strength that is not a finite number, a set made for another engine.
            RangeError: a strength at which a factor overflows.
        """
        if loras.table is not self.table:
            raise UsageError("set_lora", "a set prepared for another engine", "one that this session prepared")
        strengths = [own * strength for own in loras.strengths]
        for file, value, largest in zip(loras.files, strengths, loras.largest, strict=True):
            if not math.isfinite(value):
                raise UsageError("strength", str(value), "a finite number")
            if largest * abs(value) > torch.finfo(self.dtype).max:
                raise RangeError(str(file.path), f"at strength {value:g} it overflows {self.dtype}", "a lower strength")
        if not loras.files:
            self.clear()
            return
        if self.device.type == "cuda":
            for tensor in (loras.downs, *loras.ups):  # its memory must not be reused before the copies
                tensor.record_stream(torch.cuda.current_stream(self.device))
        if loras is not self.current:
            _pieces(self._flat, _DOWN).index_copy_(0, self._down_index, _pieces(loras.downs, _DOWN))
        up = loras.ups[0] * strengths[0]
        for more, value in zip(loras.ups[1:], strengths[1:], strict=True):
            up += more * value  # where one set is not zero, the others are
        _pieces(self._flat, _UP).index_copy_(0, self._up_index, _pieces(up, _UP))
        self.current = loras

    def clear(self) -> None:
        """Take out the current set: the engine is then as it was built."""
        _pieces(self._flat, _DOWN).index_fill_(0, self._down_index, 0)
        _pieces(self._flat, _UP).index_fill_(0, self._up_index, 0)
        self.current = None

    def _staging(self, index: Tensor, piece: int) -> Tensor:
        pinned = self.device.type == "cuda"
        return torch.zeros(len(index) * piece, dtype=self.dtype, pin_memory=pinned)

    def _read(self, path: Path, allow_partial: bool) -> LoraFile:
        if self._names is None:
            self._names = name_table(get_model(self.table.model), self.table.shapes)
        file = read_lora(path, self._names, self.table.shapes)
        slotted = {layer for slot in self.table.slots for layer in slot.rows.first}
        outside = [(c.name, reason) for c in file.changes if (reason := _outside(c, slotted))]
        if not allow_partial:
            file.require_whole(self.table.model, "Pass allow_partial=True to leave them out.")
            if outside:
                refuse_partial(
                    path,
                    outside,
                    f"the slots of {self.table.model}",
                    "Pass allow_partial=True to leave them out, or build it in with --lora.",
                )
        left = {name for name, _ in outside}
        file = replace(file, changes=tuple(c for c in file.changes if c.name not in left))
        file.require_any(self.table.model)
        return file


def open_slots(folder: Path, entry: SlotsEntry, device: torch.device | str = "cpu") -> LoraSlots:
    """Open the slots of an engine folder that has been verified."""
    return LoraSlots(folder / Path(entry.file).name, device)


def require_slots(slots: LoraSlots | None) -> LoraSlots:
    """Return the slots. Raises UnsupportedError for an engine without any."""
    if slots is None:
        raise UnsupportedError("set_lora", "an engine without LoRA slots", "one built with --lora-slots R")
    return slots


def check_inputs_match(slots: LoraSlots, names: Iterator[str] | Sequence[str]) -> None:
    """Raise ArtifactError unless the engine has every input that the slots feed."""
    have = set(names)
    missing = [name for name in slots.views if name not in have]
    if missing:
        raise ArtifactError(
            "lora_slots.safetensors",
            f"input '{missing[0]}', which the engine lacks",
            "the file that was written with this engine",
            "Build the engine again.",
        )


def _outside(change: Change, slotted: set[str]) -> str:
    """Why slots cannot hold a change; empty when they can."""
    if any(t.layer not in slotted for t in change.targets):
        return "a convolution, which has no slot"
    if not isinstance(change, Additive):
        return f"{change.kind}, which is made of the model's own weights"
    if change.has_bias and change.delta().bias is not None:
        return "a change of a bias, which has no slot"
    return ""


def _view(flat: Tensor, place: tuple[int, tuple[int, int]]) -> Tensor:
    start, shape = place
    return flat[start : start + math.prod(shape)].view(shape)


def _pieces(flat: Tensor, elements: int) -> Tensor:
    """View `flat` as [pieces, words] int64: a copy moves words, four elements each."""
    return flat.view(torch.int64).view(-1, elements // 4)


def _down_pieces(slot: Slot, start: int) -> Tensor:
    """Numbers of the pieces of a down's reserved rows; the last may reach into the gap after the tensor."""
    first = start + slot.base * slot.rows.k
    return torch.arange(first // _DOWN, -(-(first + slot.reserved * slot.rows.k) // _DOWN))


def _up_pieces(slot: Slot, start: int) -> Tensor:
    """Numbers of the pieces of an up's reserved columns, row by row."""
    rows = start + torch.arange(slot.rows.n)[:, None] * slot.rank + slot.base
    return (rows // _UP + torch.arange(slot.reserved // _UP)).flatten()
