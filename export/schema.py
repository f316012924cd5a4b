"""The op types as ONNX operator schemas, so that exporter and checker know inputs, types and attributes."""

from __future__ import annotations

import onnx
from onnx.defs import OpSchema

from svdq_trt.contract.formats import Dtype
from svdq_trt.contract.ops import DOMAIN, OPS, PLUGIN_NAMESPACE, PLUGIN_VERSION, OpSpec

_TYPES = {Dtype.ACT: "T", Dtype.INT8: "tensor(int8)", Dtype.F32: "tensor(float)"}
_FLOATS = ["tensor(float16)", "tensor(bfloat16)", "tensor(float)"]


def register_schemas() -> None:
    """Register every op type with onnx.defs. A second call does nothing.

    x, and with it y and the 16-bit inputs, may be f32, as in the twin that stands in for bf16 models.
    """
    for op in OPS.values():
        if not onnx.defs.has(op.op_type, DOMAIN):
            onnx.defs.register_schema(_schema(op))


def schema(op_type: str) -> OpSchema:
    """The schema of one op type; registers all on first use."""
    register_schemas()
    return onnx.defs.get_schema(op_type, DOMAIN)


def _schema(op: OpSpec) -> OpSchema:
    inputs = [
        OpSchema.FormalParameter(i.name, _TYPES[i.dtype_of(op.format)], f"{i.shape}: {i.meaning}") for i in op.inputs
    ]
    numbers = [
        OpSchema.Attribute(a.name, onnx.helper.make_attribute(a.name, _number(a.kind, a.default)), a.meaning)
        for a in op.attributes
    ]
    strings = [
        OpSchema.Attribute(name, onnx.helper.make_attribute(name, value), "where TensorRT looks for the plugin")
        for name, value in (("plugin_version", PLUGIN_VERSION), ("plugin_namespace", PLUGIN_NAMESPACE))
    ]
    return OpSchema(
        op.op_type,
        DOMAIN,
        1,
        doc=f"SVDQuant, linears in a row: {len(op.linears)}; {op.format.summary}; activation {op.activation.name}.",
        inputs=inputs,
        outputs=[OpSchema.FormalParameter("y", "T", "[..., N_out]")],
        type_constraints=[("T", _FLOATS, "act dtype")],
        attributes=[*numbers, *strings],
    )


def _number(kind: str, value: float) -> int | float:
    return int(value) if kind == "int" else float(value)
