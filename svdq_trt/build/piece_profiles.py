"""The ranges of what a piece of a graph takes: the model's inputs, and tensors that other pieces make."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from svdq_trt.artifact.manifest import TensorProfile
from svdq_trt.base.errors import UnsupportedError
from svdq_trt.runtime.onnx_graph import read_graph
from svdq_trt.runtime.shapes import rule_of

_OPERATIONS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
}
#: as sympy writes them
_FUNCTIONS: dict[str, Callable[..., int]] = {"Min": min, "Max": max}


def piece_profiles(piece: Path, model: Sequence[TensorProfile]) -> list[TensorProfile]:
    """The profiles of all inputs of `piece`, an ONNX file; `model` has those of the model's inputs.

    Raises:
        UnsupportedError: a size that does not follow from those of the model's inputs.
    """
    known = {profile.name: profile for profile in model}
    sizes = [dict(pair for profile in model for pair in _named(profile, bound)) for bound in ("min", "opt", "max")]
    found = []
    for own in read_graph(piece).inputs:
        if own.name in known:
            found.append(known[own.name])
            continue
        axes = [axis or str(size) for axis, size in zip(own.axes, own.min, strict=True)]
        low, opt, high = (tuple(_evaluated(f"{piece}: '{own.name}'", axis, one) for axis in axes) for one in sizes)
        found.append(TensorProfile(own.name, own.dtype, low, opt, high, own.axes))
    return found


def _named(profile: TensorProfile, bound: str) -> Iterator[tuple[str, int]]:
    """The sizes by name that an input's shape at a bound gives: 64 as ``4*height`` gives a height of 16."""
    for axis, size in zip(profile.axes, getattr(profile, bound), strict=True):
        times, name = rule_of(axis)
        if name:
            yield name, size // times


def _evaluated(where: str, size: str, names: Mapping[str, int]) -> int:
    """The value of ``2*height + 16`` or ``Min(tokens, 512)``."""

    def value(node: ast.expr) -> int:
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATIONS:
            return _OPERATIONS[type(node.op)](value(node.left), value(node.right))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in _FUNCTIONS:
            return _FUNCTIONS[node.func.id](*map(value, node.args))
        if isinstance(node, ast.Name) and node.id in names:
            return names[node.id]
        if isinstance(node, ast.Constant) and isinstance(node.value, int):
            return node.value
        raise UnsupportedError(where, f"a size of {size}", f"one of {', '.join(names)}", "Build without --step-cache.")

    try:
        return value(ast.parse(size, mode="eval").body)
    except SyntaxError:
        raise UnsupportedError(where, f"a size of {size}", "a sum or product of the inputs' sizes") from None
