#!/usr/bin/env bash
# onnxruntime 1.32.0 (CPU), onnx 1.23.2
#
# Expected: Cast and QuantizeLinear to float8 with saturate = 0 turn everything above the largest value into NaN (e4m3fn) or infinity
#   (e5m2), as ONNX's table of special values says and its reference evaluator does.
# What happens: in ONNX Runtime 470 becomes NaN, 480 to 495 become 448, 500 becomes NaN again (e4m3fn); 61440 to 65535 become
#   NaN where infinity is due, which 70000 does become (e5m2). These are the inputs whose exponent still fits.
# Why it matters: saturate = 0 is how one asks whether a scale overflows. A hole just above the maximum, where overflow is
#   likeliest, answers "no" for e4m3fn.
source "$(dirname "$0")/common.sh"
install onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
run_python <<'PY'
import numpy as np
import onnx.parser
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator
from seen import seen

CAST = "c = Cast <to = {to}, saturate = 0> (x)"
QUANTIZE = "one = Constant <value = float {{1}}> ()  c = QuantizeLinear <output_dtype = {to}, saturate = 0> (x, one)"


def both(lines, to, x):
    """The values after a round trip through a float8 type: (ONNX Runtime, reference)."""
    text = lines.format(to=to) + "  y = Cast <to = 1> (c)"
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 23]> g (float[N] x) => (float[N] y) {{ {text} }}')
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options)
    return session.run(None, {"x": x})[0], ReferenceEvaluator(model).run(None, {"x": x})[0]


for name, to, lines, step, low, high in (
    ("Cast to e4m3fn", 17, CAST, 1, 480, 495),
    ("QuantizeLinear to e4m3fn", 17, QUANTIZE, 1, 480, 495),
    ("Cast to e5m2", 19, CAST, 64, 61440, 65472),
):
    x = np.arange(0, high * 4, step, dtype=np.float32)
    got, want = both(lines, to, x)
    differ = ~((got == want) | (np.isnan(got) & np.isnan(want)))
    seen(f"{name}: inputs where both differ, first and last", (float(x[differ][0]), float(x[differ][-1])), (low, high))
    seen("    all between them do", int(differ.sum()), (high - low) // step + 1)
    print(f"    ONNX Runtime gives {set(map(str, got[differ]))}, the reference {set(map(str, want[differ]))}")
    middle = differ.nonzero()[0][0]
    seen("    ONNX Runtime's is NaN", bool(np.isnan(got[middle])), to == 19)
PY
