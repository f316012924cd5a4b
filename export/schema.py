"""The op types as ONNX operator schemas, so that exporter and checker know inputs, types and attributes."""

from __future__ import annotations

import onnx
from onnx.defs import OpSchema

from svdq_trt.contract.attention import EVERY_OP, AttentionOp
from svdq_trt.contract.formats import Dtype
from svdq_trt.contract.ops import DOMAIN, PLUGIN_NAMESPACE, PLUGIN_VERSION, OpSpec

_TYPES = {Dtype.ACT: "T", Dtype.INT8: "tensor(int8)", Dtype.F32: "tensor(float)"}
_FLOATS = ["tensor(float16)", "tensor(bfloat16)", "tensor(float)"]


def register_schemas() -> None:
    """Register every op type with onnx.defs. A second call does nothing.

    The first input, and with it outputs and 16-bit inputs, may be f32, as in the twin that stands in for bf16 models.
    """
    for op in EVERY_OP.values():
        if not onnx.defs.has(op.op_type, DOMAIN):
            onnx.defs.register_schema(_schema(op))


def schema(op_type: str) -> OpSchema:
    """The schema of one op type; registers all on first use."""
    register_schemas()
    return onnx.defs.get_schema(op_type, DOMAIN)


def _schema(op: OpSpec | AttentionOp) -> OpSchema:
    if isinstance(op, AttentionOp):
        doc = "Attention on packed q, k, v; see svdq_trt/contract/attention.py."
        inputs = [_formal(i.name, i.dtype, i.shape, i.meaning) for i in op.inputs]
        outputs = [_formal(out.name, out.dtype, out.shape, out.meaning) for out in op.outputs]
    else:
        doc = f"SVDQuant, linears in a row: {len(op.linears)}; {op.format.summary}; activation {op.activation.name}."
        inputs = [_formal(i.name, i.dtype_of(op.format), i.shape, i.meaning) for i in op.inputs]
        outputs = [OpSchema.FormalParameter("y", "T", "[..., N_out]")]
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
        doc=doc,
        inputs=inputs,
        outputs=outputs,
        type_constraints=[("T", _FLOATS, "act dtype")],
        attributes=[*numbers, *strings],
    )


def _formal(name: str, dtype: Dtype, shape: str, meaning: str) -> OpSchema.FormalParameter:
    return OpSchema.FormalParameter(name, _TYPES[dtype], f"{shape}: {meaning}")


def _number(kind: str, value: float) -> int | float:
    return int(value) if kind == "int" else float(value)
