#!/usr/bin/env bash
# tensorrt-rtx 1.7.1.116 (CPU only), onnx 1.23.2, onnxruntime 1.32.0
#
# Expected: QuantizeLinear without a zero point and without output_dtype gives uint8: so says ONNX, so does ONNX Runtime. A parser
#   that has no uint8 would refuse it, as this one does when output_dtype says uint8 in words.
# What happens: TensorRT-RTX makes an int8 quantization of it, without a word. Codes above 127 are cut off there, negative
#   inputs, which are 0 in ONNX, keep their sign, and a network output declared uint8 becomes int8.
# Why it matters: activations behind a ReLU or GELU are what people quantize to unsigned codes. The file is right, its
#   check in ONNX Runtime is right, and the upper half of the range is gone in the engine. Always write a zero point of the type you mean.
source "$(dirname "$0")/common.sh"
install tensorrt-rtx==1.7.1.116 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
run_python <<'PY'
import numpy as np
import onnx.parser
import onnxruntime as ort
from rtx import Parsed
from seen import seen

HEAD = '<ir_version: 10, opset_import: ["": 23]> g (float[4] x) => (uint8[4] y) <float s = {1}> '
plain = HEAD + "{ y = QuantizeLinear (x, s) }"
session = ort.InferenceSession(onnx.parser.parse_model(plain).SerializeToString())
codes = session.run(None, {"x": np.array([-5, 100, 200, 300], np.float32)})[0]
seen("-5, 100, 200, 300 in ONNX Runtime", (str(codes.dtype), codes.tolist()), ("uint8", [0, 100, 200, 255]))
parsed = Parsed(plain)
seen("errors and warnings of TensorRT-RTX", [parsed.errors, *parsed.warnings], [""])
seen("its output, declared uint8", parsed.network.get_output(0).dtype.name, "INT8")
seen("it builds", parsed.build(89) is not None, True)
worded = Parsed(HEAD + "{ y = QuantizeLinear <output_dtype = 2> (x, s) }")
seen("the same with output_dtype = UINT8 parses", worded.ok, False)
PY
