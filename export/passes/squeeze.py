"""Write Squeeze as Reshape: one of the TensorRT-RTX cores that engines are run with takes no Squeeze.

torch's squeeze of a dimension that is not 1 does nothing; the exporter writes it as a Squeeze all the same, which is
an error in ONNX. Such a Squeeze is dropped.
"""

from __future__ import annotations

import onnx_ir as ir

from svdq_export.passes.constants import integers


def squeeze_to_reshape(model: ir.Model) -> int:
    """Replace each Squeeze whose result shape a Reshape can say with a constant; returns how many.

    A dimension before the first squeezed axis is copied (0); after it at most one may be dynamic (-1). A vector
    of one element that becomes a scalar (a size, mostly) is a Gather, as an empty shape constant makes
    parsers warn. Others stay.
    """
    count = 0
    for graph in (model.graph, *model.graph.subgraphs()):
        for node in list(graph):
            if node.domain != "" or node.op_type != "Squeeze":
                continue
            data = node.inputs[0]
            if data is not None and _does_nothing(node):
                ir.convenience.replace_all_uses_with(node.outputs[0], data, replace_graph_outputs=True)
                graph.remove(node, safe=True)
            elif (target := _target(node)) is not None:
                _replace(graph, node, target)
                count += 1
    return count


def _does_nothing(node: ir.Node) -> bool:
    """Whether the traced result has the same rank as the input."""
    data, out = node.inputs[0], node.outputs[0]
    return data is not None and data.shape is not None and out.shape is not None and len(data.shape) == len(out.shape)


def _target(node: ir.Node) -> list[int] | None:
    data = node.inputs[0]
    if data is None or data.shape is None:
        return None
    axes = _axes(node, len(data.shape))
    if axes is None:
        return None
    target = []
    for i, dim in enumerate(data.shape):
        if i in axes:
            continue
        if i < min(axes, default=0):
            target.append(0)
        else:
            target.append(dim if isinstance(dim, int) else -1)
    if not target and len(data.shape) != 1:
        return None
    return target if target.count(-1) <= 1 else None


def _axes(node: ir.Node, rank: int) -> set[int] | None:
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        constant = node.inputs[1].const_value
        return None if constant is None else {int(a) % rank for a in constant.numpy().reshape(-1)}
    shape = node.inputs[0].shape if node.inputs[0] is not None else None
    if shape is None or not all(isinstance(d, int) for d in shape):
        return None
    return {i for i, d in enumerate(shape) if d == 1}


def _replace(graph: ir.Graph, node: ir.Node, target: list[int]) -> None:
    out = node.outputs[0]
    constant = integers(graph, f"{out.name}_{'shape' if target else 'index'}", target if target else 0)
    reshape = ir.node("Reshape" if target else "Gather", [node.inputs[0], constant], name=node.name)
    reshape.metadata_props.update(node.metadata_props)
    new = reshape.outputs[0]
    new.name, new.type, new.shape = out.name, out.type, out.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], [reshape], [out], [new])
