"""State the sizes of reshaped tensors that are known: TensorRT finds a -1 from sizes that it can tell to be equal.

It can where a model's input gives both. In a piece of a cut graph a tensor comes from outside, whose sizes are then
unknown to have to do with the input's, and attention needs its head's size.
"""

from __future__ import annotations

import onnx_ir as ir
from onnx_ir.passes import common as passes

from svdq_export.passes.constants import integers


def state_known_sizes(model: ir.Model) -> int:
    """Replace each -1 in a Reshape's computed target by the size that its output is known to have; returns how many."""
    count = 0
    for node in list(model.graph):
        target = node.inputs[1].producer() if node.op_type == "Reshape" and node.inputs[1] is not None else None
        sizes = node.outputs[0].shape
        if target is None or target.op_type != "Concat" or sizes is None or len(sizes) != len(target.inputs):
            continue
        known = [i for i, one in enumerate(target.inputs) if _is_open(one) and isinstance(sizes[i], int)]
        if not known:
            continue
        parts = list(target.inputs)
        for i in known:
            parts[i] = integers(model.graph, f"{node.name}_size_{i}", [sizes[i]])
        stated = ir.node("Concat", parts, attributes={"axis": 0}, name=f"{node.name}_sizes")
        stated.outputs[0].name, stated.outputs[0].type = stated.name, target.outputs[0].type
        model.graph.insert_before(node, stated)
        node.replace_input_with(1, stated.outputs[0])
        count += len(known)
    passes.RemoveUnusedNodesPass()(model)
    return count


def _is_open(value: ir.Value | None) -> bool:
    """Whether it is the constant [-1]."""
    return value is not None and value.const_value is not None and value.const_value.numpy().tolist() == [-1]
