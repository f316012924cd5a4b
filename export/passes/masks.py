"""Give attention masks a row for each query: ONNX broadcasts a mask of one row, ONNX Runtime refuses it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from svdq_export.passes.constants import integers

_INT64 = ir.TensorType(ir.DataType.INT64)
_MASK, _ROWS = 3, 2  # place of the mask among Attention's inputs, and of the rows in q [B, H, L, D]


def expand_masks(model: ir.Model) -> int:
    """Expand each mask [..., 1, S] of an Attention to [..., L, S]; returns the number of nodes."""
    count = 0
    for node in list(model.graph.all_nodes()):
        if node.domain != "" or node.op_type != "Attention" or len(node.inputs) <= _MASK:
            continue
        q, mask = node.inputs[0], node.inputs[_MASK]
        if q is None or q.shape is None or mask is None or mask.shape is None:
            continue
        if mask.shape[-2] == 1 and q.shape[_ROWS] != 1:
            node.replace_input_with(_MASK, _expanded(node, q, mask, q.shape[_ROWS], len(mask.shape)))
            count += 1
    return count


def _expanded(node: ir.Node, q: ir.Value, mask: ir.Value, rows: int | ir.SymbolicDim, rank: int) -> ir.Value:
    """The mask with q's rows: Expand to [1, ..., rows, 1]."""
    graph = node.graph
    assert graph is not None and mask.shape is not None

    def add(op: str, inputs: list[ir.Value], name: str, kind: ir.TypeProtocol | None, **attributes: int) -> ir.Value:
        made = ir.node(op, inputs, attributes=attributes, name=f"{node.name}_{name}")
        out = made.outputs[0]
        out.name, out.type = made.name, kind
        graph.insert_before(node, made)
        return out

    def ones(count: int, name: str) -> ir.Value:
        return integers(graph, f"{node.name}_{name}", np.ones(count))

    length = add("Shape", [q], "rows", _INT64, start=_ROWS, end=_ROWS + 1)
    parts = [ones(rank - 2, "before"), length, ones(1, "behind")]
    target = add("Concat", parts, "mask_shape", _INT64, axis=0)
    out = add("Expand", [mask, target], "mask", mask.type)
    length.shape, target.shape = ir.Shape([1]), ir.Shape([rank])
    out.shape = ir.Shape([*mask.shape[:-2], rows, mask.shape[-1]])
    return out
