"""Cut a graph behind a transformer's first and last block: head, tail and end of contract/step_cache.py."""

from __future__ import annotations

from collections.abc import Container, Iterable
from pathlib import Path

import onnx_ir as ir
from onnx_ir.passes import common as passes

from svdq_export.passes.reshapes import state_known_sizes
from svdq_export.write import save_beside
from svdq_trt.contract.step_cache import FIRST, LAST, RESIDUAL

_FLOATS = {ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.FLOAT}


def take_cuts(model: ir.Model) -> str:
    """Take x0, x1 and x2 from the end of the graph's outputs; x1 and x2 get their names. Returns the name of x0."""
    x2, x1, x0 = (_source(model.graph.outputs.pop()) for _ in range(3))
    passes.RemoveUnusedNodesPass()(model)
    x1.name, x2.name = FIRST, LAST
    assert x0.name is not None
    return x0.name


def write_pieces(path: Path, x0: str) -> None:
    """Write the pieces of a graph beside it; they read its data file.

    Each weight is in one of them. Whole numbers, as sizes are, do not cross the cuts: each piece makes its own.

    Args:
        path: model.onnx, as written. x0: the name that `take_cuts` returned.

    Raises:
        ArtifactError: onnx.checker refuses one.
    """
    model = ir.load(path)
    state_known_sizes(model)
    graph = model.graph
    values = ir.convenience.create_value_mapping(graph)
    residual = _add_residual(graph, values[x0], values[FIRST])
    x1, x2, results = values[FIRST], values[LAST], list(graph.outputs)
    made = _values(_before([residual]))
    tail, end = _before([x2], made), _before(results, {*made, x2})
    made |= _values(tail & end)  # what both read is the head's: no step goes without it
    crossing = {value for value in made if value.dtype in _FLOATS} | {*graph.inputs, x2}
    read_later = _read([x2], crossing - {x2}) | _read(results, crossing)
    for name, outputs, given in (
        ("head", [residual, x1, *_in_order(graph, read_later & made - {x1})], {*graph.inputs}),
        ("tail", [x2], crossing - {x2}),
        ("end", results, crossing),
    ):
        inputs = _in_order(graph, _read(outputs, given))
        piece = ir.Model(ir.convenience.extract(graph, inputs, outputs), ir_version=model.ir_version)
        piece.functions.update(model.functions)
        passes.RemoveUnusedFunctionsPass()(piece)
        passes.RemoveUnusedOpsetsPass()(piece)
        save_beside(piece, path, f"{name}.onnx")


def _add_residual(graph: ir.Graph, x0: ir.Value, x1: ir.Value) -> ir.Value:
    """x1 - x0 as a value of the graph."""
    if x0.dtype != x1.dtype:
        cast = ir.node("Cast", [x0], attributes={"to": x1.dtype.value}, name=f"{RESIDUAL}_cast")  # type: ignore[union-attr]
        graph.append(cast)
        (x0,) = cast.outputs
    node = ir.node("Sub", [x1, x0], name=RESIDUAL)
    graph.append(node)
    (residual,) = node.outputs
    residual.name, residual.type, residual.shape = RESIDUAL, x1.type, x1.shape
    return residual


def _before(values: Iterable[ir.Value], ends: Container[ir.Value] = ()) -> set[ir.Node]:
    """The nodes that `values` depend on, not through `ends`."""
    found: set[ir.Node] = set()
    left = list(values)
    while left:
        value = left.pop()
        node = None if value in ends else value.producer()
        if node is not None and node not in found:
            found.add(node)
            left += [given for given in node.inputs if given is not None]
    return found


def _read(values: Iterable[ir.Value], given: Container[ir.Value]) -> set[ir.Value]:
    """Those of `given` that `values` depend on, not through others of `given`."""
    nodes = _before(values, given)
    return {value for node in nodes for value in node.inputs if value is not None and value in given}


def _values(nodes: Iterable[ir.Node]) -> set[ir.Value]:
    return {value for node in nodes for value in node.outputs}


def _in_order(graph: ir.Graph, values: Container[ir.Value]) -> list[ir.Value]:
    """The values in the order of the graph: its inputs, then what its nodes make."""
    made = (value for node in graph for value in node.outputs)
    return [value for value in (*graph.inputs, *made) if value in values]


def _source(value: ir.Value) -> ir.Value:
    """The value, or what it is the same as."""
    while (node := value.producer()) is not None and node.op_type == "Identity" and node.inputs[0] is not None:
        value = node.inputs[0]
    return value
