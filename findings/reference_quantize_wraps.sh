#!/usr/bin/env bash
# onnx 1.23.2 (onnx.reference), onnxruntime 1.32.0
#
# Expected: QuantizeLinear saturates; ONNX's formula for it is saturate(x / scale + zero point). A large x gives the largest code.
# What happens: in the reference evaluator (x86-64) x/scale from 2^31 on, infinity too, gives the *smallest* code: -128 for int8, 0 for
#   uint8, -8 for int4. It goes through int32 before it clips. ONNX Runtime saturates as written.
# Why it matters: the reference is what a quantizer's tests compare with, and extreme inputs are what such tests are made of. A tiny
#   scale, as an all but empty channel has, is enough to get there. The expected value has the wrong sign.
source "$(dirname "$0")/common.sh"
install onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
run_python <<'PY'
import numpy as np
import onnx.parser
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator
from seen import seen

X = np.array([1e3, 2e9, 3e9, np.inf], np.float32)
print(f"x / scale: {X.tolist()}")
for name, dtype, top, bottom in (("int8", 3, 127, -128), ("uint8", 2, 255, 0), ("int4", 22, 7, -8)):
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 23]> g (float[N] x) => (float[N] y) <float one = {1}> '
        f"{{ q = QuantizeLinear <output_dtype = {dtype}> (x, one)  y = DequantizeLinear (q, one) }}"
    )
    runtime = ort.InferenceSession(model.SerializeToString()).run(None, {"x": X})[0]
    with np.errstate(invalid="ignore"):
        reference = ReferenceEvaluator(model).run(None, {"x": X})[0]
    seen(f"{name} in ONNX Runtime", runtime.tolist(), [top] * 4)
    seen(f"{name} in the reference", reference.tolist(), [top, top, bottom, bottom])
PY
