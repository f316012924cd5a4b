"""Fuse two SVDQLinear nodes in a row into one SVDQMlp node, so that the hidden activation need not exist in 16 bit."""

from __future__ import annotations

import onnx_ir as ir

from svdq_trt.contract.formats import Activation
from svdq_trt.contract.ops import ATTRIBUTES, DOMAIN, LINEAR_OPS, MLP_OPS, OpSpec, mlp_name, mlp_op_type


def fuse_mlps(model: ir.Model) -> int:
    """Replace each pair that has an op type, where nothing else reads the value between them; returns how many.

    The node stands where the second linear stood and is named after both; their inputs keep their names.
    """
    count = 0
    for graph in (model.graph, *model.graph.subgraphs()):
        for fc1 in list(graph):
            fc2 = _only_reader(fc1)
            op = None if fc2 is None else _op(fc1, fc2)
            if fc2 is not None and op is not None:
                _replace(graph, fc1, fc2, op)
                count += 1
    return count


def _only_reader(node: ir.Node) -> ir.Node | None:
    """The one reader of the node's output, if it reads it as its first input; else None."""
    out = node.outputs[0] if node.outputs else None
    if out is None or out.is_graph_output() or len(out.uses()) != 1:
        return None
    ((reader, index),) = out.uses()
    return reader if index == 0 and reader.graph is node.graph else None


def _op(fc1: ir.Node, fc2: ir.Node) -> OpSpec | None:
    """The op type for both nodes together."""
    first, second = (LINEAR_OPS.get(node.op_type) if node.domain == DOMAIN else None for node in (fc1, fc2))
    if first is None or second is None:
        return None
    if first.format is not second.format or second.activation is not Activation.NONE:
        return None
    return MLP_OPS.get(mlp_op_type(first.format, first.activation))


def _replace(graph: ir.Graph, fc1: ir.Node, fc2: ir.Node, op: OpSpec) -> None:
    of_linear = [a.name for a in ATTRIBUTES if not a.of_op]
    attributes = {name: a for name, a in fc1.attributes.items() if name not in of_linear}
    for linear, node in zip(op.linears, (fc1, fc2), strict=True):
        own = {linear.prefix + name: node.attributes[name] for name in of_linear}
        attributes |= {name: ir.Attr(name, a.type, a.value) for name, a in own.items()}
    mlp = ir.node(
        op.op_type,
        [*fc1.inputs, *fc2.inputs[1:]],
        attributes=attributes,
        domain=DOMAIN,
        name=mlp_name(fc1.name or "", fc2.name or ""),
    )
    old, new = fc2.outputs[0], mlp.outputs[0]
    new.name, new.type, new.shape = old.name, old.type, old.shape
    ir.convenience.replace_nodes_and_values(graph, fc2, [fc1, fc2], [mlp], [old], [new])
