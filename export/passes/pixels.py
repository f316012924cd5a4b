"""Drop transposes between pixels and tokens that cancel, with a Reshape between them.

A node in the place of a convolution of 1 x 1 gives channels last; the model wants them first, and then tokens again.
"""

from __future__ import annotations

import onnx_ir as ir

from svdq_export.passes.constants import integers


def pixels_to_tokens(model: ir.Model) -> int:
    """Write Transpose [B, ..., C] -> [B, C, ...], Reshape to [B, C, L] and Transpose to [B, L, C] as one Reshape.

    Returns how many. A Transpose that nothing reads any more is dropped.
    """
    count = 0
    for graph in (model.graph, *model.graph.subgraphs()):
        for node in list(graph):
            flat = _producer(node, "Transpose", [0, 2, 1], "Reshape")
            first = None if flat is None else _producer(flat, "Reshape", None, "Transpose")
            if flat is not None and first is not None and _is_flat(first, flat):
                _replace(graph, node)
                for unread in (flat, first):
                    if not unread.outputs[0].uses() and not unread.outputs[0].is_graph_output():
                        graph.remove(unread, safe=True)
                count += 1
    return count


def _producer(node: ir.Node, kind: str, perm: list[int] | None, of: str) -> ir.Node | None:
    """What makes the input of a node of type `kind`, if it is of type `of`."""
    if node.domain != "" or node.op_type != kind or (perm is not None and _perm(node) != perm):
        return None
    before = node.inputs[0].producer() if node.inputs[0] is not None else None
    return before if before is not None and (before.domain, before.op_type) == ("", of) else None


def _perm(node: ir.Node) -> list[int]:
    return list(node.attributes["perm"].as_ints())


def _is_flat(first: ir.Node, flat: ir.Node) -> bool:
    """Whether `first` moves the last of its axes to the second place, and `flat` joins those behind it."""
    before, after = first.outputs[0].shape, flat.outputs[0].shape
    if before is None or after is None or len(after) != 3 or list(after[:2]) != list(before[:2]):
        return False
    rank = len(before)
    return isinstance(before[1], int) and _perm(first) == [0, rank - 1, *range(1, rank - 1)]


def _replace(graph: ir.Graph, node: ir.Node) -> None:
    flat = node.inputs[0].producer()  # type: ignore[union-attr]
    first = flat.inputs[0].producer()  # type: ignore[union-attr]
    out = node.outputs[0]
    assert first is not None and out.shape is not None and isinstance(out.shape[2], int)
    constant = integers(graph, f"{out.name}_shape", [0, -1, out.shape[2]])
    reshape = ir.node("Reshape", [first.inputs[0], constant], name=node.name)
    reshape.metadata_props.update(node.metadata_props)
    new = reshape.outputs[0]
    new.name, new.type, new.shape = out.name, out.type, out.shape
    ir.convenience.replace_nodes_and_values(graph, node, [node], [reshape], [out], [new])
