#!/usr/bin/env bash
# onnxruntime 1.32.0 (CPU), onnx 1.23.2
#
# Expected: Cast from a float to an integer type cuts off the fraction, to int4 as to int8. ONNX's text leaves it open, but the reference
#   evaluator does so for every integer type.
# What happens: ONNX Runtime cuts off for int8 and uint8, but rounds to the nearest, halves away from zero, for int4 and
#   uint4. 2.5 becomes 2 as int8 and 3 as int4; 7.5 becomes 7 as int8 and -8 as int4, rounded up out of the range.
# Why it matters: a graph that packs 4-bit codes with Cast gives other codes than the reference, by one step for half of the
#   values and by 15 at the upper end. And halves away from zero is not QuantizeLinear's rounding (half to even) either: put a Round in front.
source "$(dirname "$0")/common.sh"
install onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
run_python <<'PY'
import numpy as np
import onnx.parser
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator
from seen import seen

X = np.array([2.4, 2.5, 3.5, -2.5, 6.9, 7.5], np.float32)


def cast(to, pre=""):
    """X through an integer type: (ONNX Runtime, reference)."""
    text = f"r = {pre or 'Identity'} (x)  c = Cast <to = {to}> (r)  y = Cast <to = 1> (c)"
    model = onnx.parser.parse_model(f'<ir_version: 10, opset_import: ["": 23]> g (float[N] x) => (float[N] y) {{ {text} }}')
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(model.SerializeToString(), options)
    return [values.astype(int).tolist() for values in (session.run(None, {"x": X})[0], ReferenceEvaluator(model).run(None, {"x": X})[0])]


print(f"x: {X.tolist()}")
for name, to, got in (("int8", 3, [2, 2, 3, -2, 6, 7]), ("int4", 22, [2, 3, 4, -3, 7, -8])):
    runtime, reference = cast(to)
    seen(f"to {name}, ONNX Runtime", runtime, got)
    seen(f"to {name}, reference", reference, [2, 2, 3, -2, 6, 7])
runtime, reference = cast(22, "Round")
seen("to int4 behind a Round, both agree", runtime == reference, True)
PY
