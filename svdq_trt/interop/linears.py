"""A checkpoint under diffusers' names, a linear at a time -> nodes and 16-bit tensors of one of our models.

A maker says what a linear of its file is (`Source`). Which of them become a node, which are dequantized because our
model keeps them, and what else must be there, is the same for all of them.

Letters: N output features, K input features, R rank.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import nn

from svdq_trt.base.errors import UnsupportedError
from svdq_trt.checkpoint.load import Weights
from svdq_trt.contract.formats import K_MULTIPLE, R_MULTIPLE, Activation
from svdq_trt.contract.weights import SvdqWeights
from svdq_trt.interop import w4a4
from svdq_trt.interop.container import hints_of
from svdq_trt.interop.exact import same_bits
from svdq_trt.interop.layouts import Layout
from svdq_trt.interop.node_hints import restored
from svdq_trt.interop.order import Order, Stored, check_order
from svdq_trt.interop.packing import padded
from svdq_trt.interop.reader import Reader
from svdq_trt.interop.result import GELU_SHIFT, Imported, fits, shifted_bias
from svdq_trt.interop.w4a4 import Rows
from svdq_trt.models import LinearGroup, ModelSpec

_IN_16_BIT = "16 bit in the imported checkpoint"


class Found(NamedTuple):
    """A quantized linear of a file.

    Attributes:
        weights: N rows in the model's order, K padded to 64.
        unsigned: its activation codes are u4, of a GELU's output after the shift.
    """

    weights: SvdqWeights
    unsigned: bool = False


class Source(ABC):
    """What a maker's file says of its layers, by diffusers' names."""

    def __init__(self, reader: Reader, spec: ModelSpec) -> None:
        self.reader, self.dtype = reader, spec.torch_dtype
        self.hints = hints_of(reader)

    @abstractmethod
    def quantized(self, name: str) -> bool:
        """Whether the layer is stored in 4 bits."""

    @abstractmethod
    def read(self, name: str, n: int, k: int) -> Found:
        """The linear [N, K]. Raises ArtifactError, ShapeError, RangeError: naming the tensor that does not fit."""


class Ordered(Source):
    """A file whose codes lie in `order` by its declaration alone: another order has the same names and shapes."""

    def __init__(self, reader: Reader, spec: ModelSpec, layout: Layout, order: Order) -> None:
        super().__init__(reader, spec)
        self.layout, self.order = layout, order
        self.stored: list[Stored] = []

    def read_w4a4(self, name: str, n: Sequence[int], k: int) -> SvdqWeights:
        """The W4A4 linear that the file has as `name`, its rows one after the other."""
        rows = Rows.of(n, tile=self.layout.tile)
        self.stored.append(Stored(name, rows, k, self.layout.tile))
        return w4a4.read(self.reader, name, self.layout, rows, k, self.dtype, self.hints.get(name, {})).weights

    def check(self) -> None:
        """Raise UnsupportedError for codes that lie in another order."""
        check_order(self.reader, self.stored, self.order, declared=True)


def read_linears(source: Source, spec: ModelSpec, rest: Weights | None = None) -> Imported:
    """Everything in the file, checked against the model.

    Args:
        rest: where the other parameters are, of a file that has quantized layers alone.

    Raises:
        ArtifactError, ShapeError, RangeError: naming what does not fit.
        UnsupportedError: a quantized layer that is no linear, or nothing quantized that this model quantizes.
    """
    return _Import(source, spec, rest).run()


class _Import:
    """One import; `left` are the model's parameters that no layer has given yet."""

    def __init__(self, source: Source, spec: ModelSpec, rest: Weights | None) -> None:
        self.source, self.reader, self.spec, self.rest = source, source.reader, spec, rest
        self.module = spec.build(device="meta")
        self.groups = spec.groups(self.module)
        self.shapes = {name: tuple(p.shape) for name, p in self.module.state_dict().items()}
        self.left = dict(self.shapes)
        self.hints = hints_of(self.reader, "nodes")
        self.linears: dict[str, Found] = {}
        self.wide: list[tuple[str, int]] = []  # nodes whose members have a low-rank branch each, and their rank
        self.out = Imported()

    def run(self) -> Imported:
        for name, module in self.module.named_modules():
            if self.source.quantized(name):
                if not isinstance(module, nn.Linear):
                    where = f"{self.reader.where}: '{name}'"
                    raise UnsupportedError(where, "a quantized layer that is no linear", "linears only")
                self.linears[name] = self.source.read(name, module.out_features, module.in_features)
        if isinstance(self.source, Ordered):
            self.source.check()
        done = {member for group in self.groups for member in self._group(group)}
        for name in self.linears:
            if name not in done:
                self._dequantized(name)
            self.left.pop(f"{name}.weight", None)
            self.left.pop(f"{name}.bias", None)
        if self.rest is None:
            self.out.tensors |= self.reader.take_tables(self.spec, self.left)
        for name, shape in sorted(self.left.items()):
            if self.rest is None:
                self.out.tensors[name] = self.reader.take_half(name, shape, self.spec.weight_dtype(name))
            else:
                self.out.tensors[name] = self.rest.read(name)
        self.reader.refuse_leftovers(self.spec.name)
        members = {m for g in self.groups for m in g.members}
        self.out.kept |= dict.fromkeys(sorted(members - set(self.linears)), _IN_16_BIT)
        self.out.finish(self.spec, self.groups)
        if self.wide:
            (name, rank), more = self.wide[0], f" and {len(self.wide) - 1} more" if len(self.wide) > 1 else ""
            self.out.notes.append(f"{name}{more}: rank {rank}, as its linears have a low-rank branch each.")
        return self.out

    def _group(self, group: LinearGroup) -> tuple[str, ...]:
        """Make the group's node, or one node a member where they share no smoothing. Returns the members done."""
        alone = [m for m in group.members if m in self.linears]
        found = [self.linears[m] for m in alone]
        columns = group.columns
        if not found or any(c % K_MULTIPLE for c in columns or ()):
            return ()
        if any(not fits(f.weights, self.shapes[f"{m}.weight"][1]) for m, f in zip(alone, found, strict=True)):
            return ()
        if len(found) == len(group.members) and all(_same_input(found[0], other) for other in found):
            whole = stacked([f.weights for f in found])
            if whole.rank > max(f.weights.rank for f in found):
                self.wide.append((group.node, whole.rank))
            whole = without_zeros(whole if columns is None else whole.columns(*columns))
            self._add(group, whole, tuple(f.weights.n for f in found), found[0].unsigned)
            return group.members
        if group.activation is not Activation.NONE:
            return ()
        for member, one in zip(alone, found, strict=True):
            self._add(LinearGroup(member, (member,)), one.weights, (one.weights.n,), one.unsigned)
        return tuple(alone)

    def _add(self, group: LinearGroup, weights: SvdqWeights, rows: tuple[int, ...], unsigned: bool) -> None:
        known = restored(weights, self.hints.get(group.node, {}))
        self.out.add_node(group, known, rows, unsigned or known.act_unsigned)

    def _dequantized(self, name: str) -> None:
        weights, unsigned = self.linears[name]
        weight = weights.dequantize()[:, : self.shapes[f"{name}.weight"][1]]
        self.out.tensors[f"{name}.weight"] = weight.to(self.spec.torch_dtype)
        bias = shifted_bias(weights, -GELU_SHIFT) if unsigned else weights.bias
        if f"{name}.bias" in self.shapes:
            self.out.tensors[f"{name}.bias"] = bias
        elif bool(bias.any()):
            raise UnsupportedError(f"{self.reader.where}: '{name}'", "a bias", "none: this model's layer has none")
        self.out.kept[name] = f"{weights.format.name} in the imported checkpoint, but kept in this model: dequantized"


def _same_input(a: Found, b: Found) -> bool:
    """Whether both quantize x alike, so that they can be one node."""
    return (a.unsigned, a.weights.format) == (b.unsigned, b.weights.format) and same_bits(
        a.weights.act_mul, b.weights.act_mul
    )


def stacked(parts: Sequence[SvdqWeights]) -> SvdqWeights:
    """Linears with the same act_mul as one; with the same lora_down, too, they keep its rank."""
    if len(parts) == 1:
        return parts[0]
    if not all(same_bits(part.lora_down, parts[0].lora_down) for part in parts):
        return SvdqWeights.stack(parts)
    bare = SvdqWeights.stack([part.with_rank(0) for part in parts])
    return replace(bare, lora_down=parts[0].lora_down, lora_up=torch.cat([part.lora_up for part in parts]))


def without_zeros(weights: SvdqWeights) -> SvdqWeights:
    """The same without ranks that are zero in either factor, up to what rounds the rank up.

    They are what a maker of one rank for all layers fills smaller ones up with, and the other half of a linear leaves.
    """
    kept = (weights.lora_down != 0).any(1) & (weights.lora_up != 0).any(0)
    shorter = replace(
        weights, lora_down=weights.lora_down[kept].contiguous(), lora_up=weights.lora_up[:, kept].contiguous()
    )
    return shorter.with_rank(padded(shorter.rank, R_MULTIPLE)).contiguous()
