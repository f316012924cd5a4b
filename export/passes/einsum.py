"""Write an Einsum that only reorders axes as Transpose: ONNX's Einsum takes no bf16."""

from __future__ import annotations

import re

import onnx_ir as ir


def einsum_to_transpose(model: ir.Model) -> int:
    """Replace each one-input Einsum whose equation is a permutation; returns how many. Others stay."""
    count = 0
    for graph in (model.graph, *model.graph.subgraphs()):
        for node in list(graph):
            if node.domain == "" and node.op_type == "Einsum" and (perm := _permutation(node)) is not None:
                out = node.outputs[0]
                transpose = ir.node("Transpose", [node.inputs[0]], attributes={"perm": perm}, name=node.name)
                transpose.metadata_props.update(node.metadata_props)
                new = transpose.outputs[0]
                new.name, new.type, new.shape = out.name, out.type, out.shape
                ir.convenience.replace_nodes_and_values(graph, node, [node], [transpose], [out], [new])
                count += 1
    return count


def _permutation(node: ir.Node) -> list[int] | None:
    """The permutation of ``nhwc->nchw``: [0, 3, 1, 2]; None for an equation that sums, repeats or takes two tensors."""
    match = re.fullmatch(r"([a-zA-Z]+)->([a-zA-Z]+)", node.attributes["equation"].as_string().replace(" ", ""))
    if match is None or len(node.inputs) != 1:
        return None
    before, after = match[1], match[2]
    if len(set(before)) != len(before) or sorted(before) != sorted(after):
        return None
    return [before.index(axis) for axis in after]
