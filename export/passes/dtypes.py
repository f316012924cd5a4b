"""Insert the casts that torch's type promotion implies and that a strongly typed parser needs to see."""

from __future__ import annotations

import onnx_ir as ir

#: Operators whose inputs must agree but may come mixed from the exporter; None: all inputs.
_SAME_TYPE: dict[str, slice] = {"Concat": slice(None), "Where": slice(1, 3)}
_RANK = {ir.DataType.FLOAT16: 0, ir.DataType.BFLOAT16: 0, ir.DataType.FLOAT: 1, ir.DataType.DOUBLE: 2}


def unify_input_types(model: ir.Model) -> int:
    """Cast every narrower float input of a Concat or Where to its widest; returns the number of casts."""
    casts = 0
    for node in list(model.graph.all_nodes()):
        if node.domain != "" or node.op_type not in _SAME_TYPE:
            continue
        indices = range(len(node.inputs))[_SAME_TYPE[node.op_type]]
        floats = {i: v for i in indices if (v := node.inputs[i]) is not None and v.dtype in _RANK}
        if len({v.dtype for v in floats.values()}) < 2:
            continue
        widest = _promote([v.dtype for v in floats.values()])
        for i, value in floats.items():
            if value.dtype != widest:
                node.replace_input_with(i, _cast(node, value, widest))
                casts += 1
        node.outputs[0].dtype = widest
    return casts


def _promote(dtypes: list[ir.DataType | None]) -> ir.DataType:
    """The common dtype by torch's rule: the wider one; f16 with bf16 gives f32."""
    known = {d for d in dtypes if d is not None}
    if known == {ir.DataType.FLOAT16, ir.DataType.BFLOAT16}:
        return ir.DataType.FLOAT
    return max(known, key=lambda d: _RANK[d])


def _cast(before: ir.Node, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    cast = ir.node("Cast", [value], attributes={"to": dtype.value}, name=f"{before.name}_cast_{value.name}")
    out = cast.outputs[0]
    out.name, out.dtype, out.shape = f"{value.name}_as_{dtype.name.lower()}_{before.name}", dtype, value.shape
    assert before.graph is not None
    before.graph.insert_before(before, cast)
    return out
