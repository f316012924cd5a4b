"""Questions about a trace: what a tensor comes from, what reads it, and which features of a layer's output."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from svdq_trt.contract.formats import Activation
from svdq_trt.models.trace import Op, Value

#: Operations that change neither values nor their order, but for what a layer does not see: dtype, sizes in front.
_SAME = ("reshape", "view", "flatten", "unflatten", "contiguous", "to", "type_as", "float", "dropout", "clone")
_SLICES = ("chunk", "split", "tensor_split", "__getitem__")
_PRODUCTS = ("mul", "mul_", "__mul__", "__rmul__", "multiply")
_REPEATS = ("expand", "expand_as", "repeat", "repeat_interleave", "broadcast_to")
_MATRIX_PRODUCTS = ("matmul", "bmm", "__matmul__")
_JOINS = ("cat", "concat", "concatenate")


@dataclass(eq=False)
class Use:
    """An operation that reads features [start, stop) of a layer's output, as `value`."""

    start: int
    stop: int
    op: Op
    value: Value


def root(value: Value) -> Value:
    """The tensor that `value` has the features of, token by token."""
    while value.op is not None and _is_same(value.op):
        value = value.op.inputs[0]
    return value


def before(values: Sequence[Value], through_layers: bool = True) -> set[Op]:
    """All operations that `values` depend on; without `through_layers` it ends at layers."""
    found: set[Op] = set()
    left = [v.op for v in values]
    while left:
        op = left.pop()
        if op is not None and op not in found:
            found.add(op)
            if through_layers or not op.layer:
                left += (v.op for v in op.inputs)
    return found


def behind(value: Value) -> set[Op]:
    """All operations that depend on `value`."""
    found: set[Op] = set()
    left = list(value.readers)
    while left:
        op = left.pop()
        if op is not None and op not in found:
            found.add(op)
            left += (reader for out in op.outputs for reader in out.readers)
    return found


def uses(value: Value, start: int = 0) -> Iterator[Use]:
    """What reads the features of a layer's output, of which `value` has those from `start` on."""
    for op in (reader for reader in value.readers if reader is not None):
        if _is_same(op):
            yield from uses(op.outputs[0], start)
        elif (starts := _slices(op, value)) is not None:
            for out, first in zip(op.outputs, starts, strict=True):
                yield from uses(out, start + first)
        else:
            yield Use(start, start + value.shape[-1], op, value)


def origin(value: Value) -> tuple[str, int, int]:
    """The layer of which `value` has features [start, stop); "" if it has been through anything else."""
    start, width = 0, value.shape[-1] if value.shape else 0
    while (op := value.op) is not None and not op.layer:
        starts = _slices(op, op.inputs[0]) if op.inputs else None
        if starts is not None:
            start += starts[op.outputs.index(value)]
        elif not _is_same(op):
            break
        value = op.inputs[0]
    return (op.layer if op else "", start, start + width)


def only_reader(value: Value) -> Op | None:
    """The one operation that reads the features of `value`; None where there are several, or it is a result."""
    readers = value.readers
    while len(readers) == 1 and readers[0] is not None and _is_same(readers[0]):
        readers = readers[0].outputs[0].readers
    return readers[0] if len(readers) == 1 else None


def side_by_side(value: Value) -> list[Value]:
    """The tensors of which `value` is the concatenation by features, or itself."""
    op = value.op
    if op is None or op.name not in _JOINS or sum(v.shape[-1] for v in op.inputs) != value.shape[-1]:
        return [value]
    return op.inputs


def uses_by_tokens(value: Value, seen: set[Op] | None = None) -> Iterator[Op]:
    """Where a tensor with one row per image meets tokens, or a layer; a choice of rows for each token is none of it."""
    seen = set() if seen is None else seen
    for op in value.readers:
        if op is None or op in seen:
            continue
        seen.add(op)
        if op.layer or (any(out.grows for out in op.outputs) and op.name not in (*_REPEATS, "where")):
            yield op
        else:
            for out in op.outputs:
                yield from uses_by_tokens(out, seen)


def activation(op: Op | None) -> Activation:
    """What is computed by an operation of one tensor."""
    if op is None or op.name not in ("gelu", "silu", "silu_"):
        return Activation.NONE
    if op.name != "gelu":
        return Activation.SILU
    tanh = "tanh" in (op.kwargs.get("approximate"), *op.args[1:])
    return Activation.GELU_TANH if tanh else Activation.GELU


def is_product(op: Op | None) -> bool:
    """Is it the product of two tensors, element by element."""
    return op is not None and op.name in _PRODUCTS and len(op.inputs) == 2


def is_attention(op: Op) -> bool:
    """Is it an attention, or the matrix product of two tensors of tokens, which one is made of."""
    if op.name in _MATRIX_PRODUCTS:
        return len(op.inputs) == 2 and all(v.grows and v.arguments for v in op.inputs)
    return op.name == "scaled_dot_product_attention"


def layers_of_other_keys(op: Op) -> set[str]:
    """Layers that make keys and values of a cross attention: from less than what the queries depend on."""
    if op.name != "scaled_dot_product_attention":
        return set()
    query, key, value = op.inputs[:3]
    if not query.arguments & ~key.arguments:
        return set()
    return {before.layer for before in before([key, value], through_layers=False)} - {""}


def _is_same(op: Op) -> bool:
    return op.name in _SAME and bool(op.inputs) and _width(op.inputs[0]) == _width(op.outputs[0])


def _width(value: Value) -> int:
    return value.shape[-1] if value.shape else 0


def _slices(op: Op, value: Value) -> list[int] | None:
    """The first feature of each output, of an operation that only takes features apart; None for another."""
    if op.name not in _SLICES or not op.inputs or op.inputs[0] is not value:
        return None
    if any(out.shape[:-1] != value.shape[:-1] for out in op.outputs):
        return None
    if op.name != "__getitem__":
        return list(itertools.accumulate((out.shape[-1] for out in op.outputs[:-1]), initial=0))
    last = op.args[1][-1] if isinstance(op.args[1], tuple) else op.args[1]
    if not isinstance(last, slice):
        return [0] if _width(op.outputs[0]) == _width(value) else None
    return [last.indices(value.shape[-1])[0]] if last.step in (None, 1) else None
