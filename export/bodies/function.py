"""One op type as a model-local function in standard operators.

ONNX Runtime runs these; TensorRT takes the plugin where one is registered and inlines these where none is.
They follow the op contract's numerics to fp32 rounding, in f16, bf16 (where the runtime has the casts) and
f32, which then is the act dtype.
"""

from __future__ import annotations

import onnx_ir as ir

from svdq_export.bodies.attention import attention
from svdq_export.bodies.build import OPSET, Body
from svdq_export.bodies.linear import linears
from svdq_trt.contract.attention import AttentionOp
from svdq_trt.contract.ops import DOMAIN, OpSpec

_KIND = {"int": ir.AttributeType.INT, "float": ir.AttributeType.FLOAT}


def build_function(op: OpSpec | AttentionOp) -> ir.Function:
    """The function ``svdq::<op_type>``: the contract's inputs, attributes and outputs.

    It declares plugin_version and plugin_namespace, which the body does not read, because a function may
    only be called with attributes that it declares.
    """
    b = Body()
    inputs = {spec.name: ir.Value(name=spec.name) for spec in op.inputs}
    if isinstance(op, AttentionOp):
        outputs, names = attention(b, op, inputs), [out.name for out in op.outputs]
    else:
        outputs, names = linears(b, op, inputs), ["y"]
    for value, name in zip(outputs, names, strict=True):
        value.name = name
    attributes = [ir.Attr(a.name, _KIND[a.kind], None) for a in op.attributes]
    attributes += [ir.Attr(n, ir.AttributeType.STRING, None) for n in ("plugin_version", "plugin_namespace")]
    graph = ir.Graph(list(inputs.values()), outputs, nodes=b.nodes, opset_imports={"": OPSET})
    return ir.Function(DOMAIN, op.op_type, graph=graph, attributes=attributes)
