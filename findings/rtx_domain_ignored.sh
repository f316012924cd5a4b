#!/usr/bin/env bash
# tensorrt-rtx 1.7.1.116 (CPU only), onnx 1.23.2
#
# Expected: `mine::Relu` is not ONNX's Relu. If the file holds a function `mine::Relu`, its body counts; if it holds none and no
#   plugin has that name, the parser refuses the node, as it does for `mine::Unknown`.
# What happens: an op type that has the name of a standard op is imported as the standard op, whatever its domain, even
#   if the file brings a function for it. No error, no warning. ONNX Runtime runs the function's body.
# Why it matters: a custom op that is "Gelu, but ..." or "Attention, but ..." loses its "but" in the engine only. Op types of
#   one's own need names that no opset has, nor will have.
source "$(dirname "$0")/common.sh"
install tensorrt-rtx==1.7.1.116 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
run_python <<'PY'
import numpy as np
import onnx.parser
import onnxruntime as ort
from rtx import Parsed
from seen import seen

HEAD = '<ir_version: 10, opset_import: ["": 23, "mine": 1]> g (float[1] x) => (float[1] y) '
FUNCTION = HEAD + """{ y = mine.Relu (x) }
    <domain: "mine", opset_import: ["": 23]> Relu (x) => (y) { y = Neg (x) }"""

session = ort.InferenceSession(onnx.parser.parse_model(FUNCTION).SerializeToString())
seen("mine::Relu (-x) of 2, ONNX Runtime", float(session.run(None, {"x": np.full(1, 2, np.float32)})[0][0]), -2.0)
for name, text in (("with its function", FUNCTION), ("without one", HEAD + "{ y = mine.Relu (x) }")):
    parsed = Parsed(text)
    seen(f"mine::Relu {name}, TensorRT-RTX's errors and warnings", [parsed.errors, *parsed.warnings], [""])
    types = [layer.type.name for layer in map(parsed.network.get_layer, range(parsed.network.num_layers))]
    seen(f"mine::Relu {name}, TensorRT-RTX's layers", types, ["ACTIVATION"])
seen("mine::Unknown parses", Parsed(HEAD + "{ y = mine.Unknown (x) }").ok, False)
PY
