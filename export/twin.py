"""The float32 twin of a 16-bit graph: same nodes, same data file, arithmetic in f32.

ONNX Runtime's CPU has no bf16 MatMul, Mul, Add or Softmax, so a bf16 model runs there through its twin only.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir

from svdq_export.write import rewrite_beside

_LOW = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)
_DTYPE_ATTRIBUTES = ("to", "dtype", "output_dtype")  # in Cast, RandomNormal, QuantizeLinear and others


def write_float32_twin(onnx_path: Path) -> Path:
    """Write the twin as ``<stem>.f32.onnx`` beside the file and return its path.

    Raises:
        ArtifactError: onnx.checker refuses the result.
    """
    return rewrite_beside(_float32_twin(onnx_path), onnx_path, "f32")


def float32_twin(onnx_path: Path) -> bytes:
    """The twin as the bytes of an ONNX file, whose external data lies in the folder of `onnx_path`."""
    twin: bytes = ir.serde.serialize_model(_float32_twin(onnx_path)).SerializeToString()
    return twin


def _float32_twin(onnx_path: Path) -> ir.Model:
    """The changed graph.

    Every f16 or bf16 input, output and intermediate is f32; 16-bit weights stay as they are in the shared
    ``.data`` file and pass through a Cast. svdq nodes then quantize with f32 as the act dtype:
    x̂ and t are not rounded to 16 bit, so the twin differs from the 16-bit graph by 16-bit rounding.
    """
    model = ir.load(onnx_path)
    graphs = [model.graph, *model.graph.subgraphs()]
    for graph in graphs:
        for value in graph.inputs:
            _widen(value)
        for node in list(graph):
            _widen_attributes(node)
            for value in node.outputs:
                _widen(value)
        for value in list(graph.initializers.values()):
            if value.dtype in _LOW:
                _cast_weight(graph, value)
    return model


def _widen(value: ir.Value) -> None:
    if value.dtype in _LOW:
        value.dtype = ir.DataType.FLOAT


def _widen_attributes(node: ir.Node) -> None:
    for name, attribute in list(node.attributes.items()):
        if name in _DTYPE_ATTRIBUTES and attribute.type == ir.AttributeType.INT:
            if ir.DataType(attribute.as_int()) in _LOW:
                node.attributes[name] = ir.AttrInt64(name, ir.DataType.FLOAT.value)
        elif attribute.type == ir.AttributeType.TENSOR and attribute.as_tensor().dtype in _LOW:
            wide = attribute.as_tensor().numpy().astype(np.float32)
            node.attributes[name] = ir.AttrTensor(name, ir.tensor(wide))


def _cast_weight(graph: ir.Graph, weight: ir.Value) -> None:
    cast = ir.node("Cast", [weight], attributes={"to": ir.DataType.FLOAT.value}, name=f"{weight.name}.f32")
    out = cast.outputs[0]
    out.name, out.dtype, out.shape = f"{weight.name}.f32", ir.DataType.FLOAT, weight.shape
    for node, index in list(weight.uses()):
        if node is not cast:
            node.replace_input_with(index, out)
    graph.insert_before(graph[0], cast)
