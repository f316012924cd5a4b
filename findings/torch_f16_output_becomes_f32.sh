#!/usr/bin/env bash
# torch 2.13.0 (torch.onnx.export, dynamo), onnxscript 0.7.2, onnxruntime 1.32.0
#
# Expected: a float16 module whose last op is abs, sum, amax or cumsum exports with a float16 output, as it does with max, mean or
#   clamp. (amax and max over one axis are the same numbers.)
# What happens: the output is float32. The exporter computes these ops in float32, casts back where another op reads the
#   result, but not where the graph ends.
# Why it matters: engines are strongly typed: the binding is float32, twice the bytes, and a caller who allocates it by the module's dtype
#   hands over half a buffer. Compare the exported output types with the module's, and cast the last result by hand: a pair of casts, to float32 and back, stays in the graph.
source "$(dirname "$0")/common.sh"
install torch==2.13.0 onnxscript==0.7.2 onnx==1.23.2 onnx-ir==1.1.0 numpy==2.4.6
run_python <<'PY'
import onnx
import torch
from dynamo import export
from seen import seen

OPS = {
    "abs": (torch.abs, "FLOAT"),
    "sum": (lambda x: x.sum(-1), "FLOAT"),
    "amax": (lambda x: x.amax(-1), "FLOAT"),
    "cumsum": (lambda x: x.cumsum(-1), "FLOAT"),
    "max": (lambda x: x.max(-1).values, "FLOAT16"),
    "mean": (lambda x: x.mean(-1), "FLOAT16"),
    "clamp": (lambda x: x.clamp(-1, 1), "FLOAT16"),
    "abs, then .float().half()": (lambda x: x.abs().float().half(), "FLOAT16"),
}
x = torch.randn(3, 4).half()
model = export(lambda x: tuple(op(x) for op, _ in OPS.values()), x)
for (name, (op, dtype)), output in zip(OPS.items(), model.graph.output, strict=True):
    seen(f"{name}: in torch", op(x).dtype, torch.float16)
    seen("    exported", onnx.TensorProto.DataType.Name(output.type.tensor_type.elem_type), dtype)
PY
