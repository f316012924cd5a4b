"""Name sizes inside a graph as its inputs do: torch knows a `height` of which an input has twice as much as `s89`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

import onnx_ir as ir

_MULTIPLE = re.compile(r"(?:\d+\*)?([A-Za-z_]\w*)")


def name_sizes(model: ir.Model, traced: Mapping[str, Iterable[Any]]) -> None:
    """Put the names of the graph's inputs into the shapes of all values.

    Args:
        traced: sizes of each input as torch has them: integers and symbolic ones.
    """
    names = {}
    for value in model.graph.inputs:
        assert value.shape is not None
        for size, named in zip(traced.get(value.name or "", ()), value.shape, strict=False):
            symbol, name = _MULTIPLE.fullmatch(str(size)), _MULTIPLE.fullmatch(str(named))
            if symbol is not None and name is not None:
                names[symbol[1]] = name[1]
    for node in model.graph:
        for value in node.outputs:
            if value.shape is not None:
                value.shape = ir.Shape([d if isinstance(d, int) else _renamed(str(d), names) for d in value.shape])


def _renamed(size: str, names: Mapping[str, str]) -> str:
    return re.sub(r"\w+", lambda word: names.get(word[0], word[0]), size)
