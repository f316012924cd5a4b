"""Let what reads a slice of a concatenation read what was concatenated: neither need exist."""

from __future__ import annotations

import itertools

import onnx_ir as ir


def unjoin_slices(model: ir.Model) -> int:
    """Replace each Slice and Split of a Concat along its axis that cuts between its operands; returns how many.

    A slice of several operands becomes a Concat of these. A Concat that nothing reads any more is dropped.
    """
    count = 0
    for graph in (model.graph, *model.graph.subgraphs()):
        for node in list(graph):
            concat = node.inputs[0].producer() if node.inputs and node.inputs[0] is not None else None
            if concat is None or concat.op_type != "Concat" or concat.domain != "" or concat.graph is not graph:
                continue
            pieces = [_operands(concat, *span) for span in _spans(node, concat) or ()]
            if pieces and all(pieces):
                _replace(graph, node, pieces)
                count += 1
                if not concat.outputs[0].uses() and not concat.outputs[0].is_graph_output():
                    graph.remove(concat, safe=True)
    return count


def _axis(node: ir.Node, axis: int) -> int:
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    return axis % len(shape) if shape is not None else axis


def _spans(node: ir.Node, concat: ir.Node) -> list[tuple[int, int]] | None:
    """The indices [start, stop) along the Concat's axis that each output of a Slice or Split has; None if unknown."""
    sizes = _sizes(concat)
    if sizes is None or node.domain != "":
        return None
    axis = _axis(concat, concat.attributes["axis"].as_int())
    if node.op_type == "Slice":
        values = [_constant(value) for value in node.inputs[1:]]
        if any(value is None or len(value) != 1 for value in values) or len(values) < 3:
            return None
        (start,), (stop,), (along,), (step,) = (*values, [1])[:4]  # type: ignore[misc]
        start, stop, step = slice(start, stop, step).indices(sum(sizes))
        return [(start, stop)] if step == 1 and _axis(node, along) == axis else None
    if node.op_type == "Split":
        given = node.attributes.get("axis")
        parts = [_size(out, axis) for out in node.outputs]
        if _axis(node, given.as_int() if given is not None else 0) != axis or None in parts:
            return None
        return list(itertools.pairwise(itertools.accumulate(parts, initial=0)))  # type: ignore[arg-type]
    return None


def _operands(concat: ir.Node, start: int, stop: int) -> list[ir.Value]:
    """The operands that make up indices [start, stop); empty where these begin or end inside one."""
    sizes = _sizes(concat)
    assert sizes is not None
    edges = list(itertools.accumulate(sizes, initial=0))
    if start not in edges or stop not in edges:
        return []
    return [value for value in concat.inputs[edges.index(start) : edges.index(stop)] if value is not None]


def _sizes(concat: ir.Node) -> list[int] | None:
    """The operands' sizes along the axis; None where one is not known."""
    axis = _axis(concat, concat.attributes["axis"].as_int())
    sizes = [_size(value, axis) for value in concat.inputs]
    return None if None in sizes else sizes  # type: ignore[return-value]


def _size(value: ir.Value | None, axis: int) -> int | None:
    size = value.shape[axis] if value is not None and value.shape is not None else None
    return size if isinstance(size, int) else None


def _constant(value: ir.Value | None) -> list[int] | None:
    tensor = value.const_value if value is not None else None
    return None if tensor is None else [int(v) for v in tensor.numpy().reshape(-1)]


def _replace(graph: ir.Graph, node: ir.Node, pieces: list[list[ir.Value]]) -> None:
    """Let readers of the node's outputs read the pieces."""
    concat = node.inputs[0].producer()  # type: ignore[union-attr]
    assert concat is not None
    for out, operands in zip(node.outputs, pieces, strict=True):
        if len(operands) > 1:
            joined = ir.node("Concat", operands, attributes={"axis": concat.attributes["axis"].as_int()})
            joined.name = f"{node.name}_{out.name}"
            new = joined.outputs[0]
            new.name, new.type, new.shape = f"{out.name}_joined", out.type, out.shape
            graph.insert_before(node, joined)
        else:
            (new,) = operands
        ir.convenience.replace_all_uses_with(out, new, replace_graph_outputs=True)
    graph.remove(node, safe=True)
