#!/usr/bin/env bash
# tensorrt-rtx 1.7.1.116 (CPU only), onnx 1.23.2
#
# Expected: a call of a model-local function means the one with the same domain, name and overload. ONNX names functions
#   by these three, the checker demands that they differ, and ONNX Runtime follows them.
# What happens: TensorRT-RTX's parser goes by the name alone. Of two overloads, and of two functions in two domains, it
#   takes one body for every call, without an error. Its only warning is about names of output tensors.
# Why it matters: overloads are the standard's own way to hold several bodies for one op type (a quantized linear with and
#   without an activation, say). The engine builds, runs, and computes something else. Give each body a name of its own.
source "$(dirname "$0")/common.sh"
install tensorrt-rtx==1.7.1.116 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
run_python <<'PY'
import numpy as np
import onnx.parser
import onnxruntime as ort
from rtx import Parsed
from seen import seen

HEAD = '<ir_version: 10, opset_import: ["": 23, "a": 1, "b": 1]> g (float[1] x) => (float[1] y, float[1] z) '
OVERLOADS = HEAD + """{ y = a.Act:negated (x)  z = a.Act:exponent (x) }
    <domain: "a", overload: "negated", opset_import: ["": 23]> Act (x) => (y) { y = Neg (x) }
    <domain: "a", overload: "exponent", opset_import: ["": 23]> Act (x) => (y) { y = Exp (x) }"""
DOMAINS = HEAD + """{ y = a.Act (x)  z = b.Act (x) }
    <domain: "a", opset_import: ["": 23]> Act (x) => (y) { y = Neg (x) }
    <domain: "b", opset_import: ["": 23]> Act (x) => (y) { y = Exp (x) }"""

for name, text in (("overloads", OVERLOADS), ("domains", DOMAINS)):
    session = ort.InferenceSession(onnx.parser.parse_model(text).SerializeToString())
    values = [float(v[0]) for v in session.run(None, {"x": np.zeros(1, np.float32)})]
    seen(f"two {name}, ONNX Runtime at x = 0", values, [0.0, 1.0])
    parsed = Parsed(text)
    seen(f"two {name}, TensorRT-RTX's errors", parsed.errors, "")
    seen(f"two {name}, TensorRT-RTX's layers", [layer.op.name for layer in parsed.layers], ["NEG", "NEG"])
PY
