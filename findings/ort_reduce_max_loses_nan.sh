#!/usr/bin/env bash
# onnxruntime 1.32.0 (CPU), onnx 1.23.2
#
# Expected: the maximum over numbers with a NaN among them is NaN, wherever it stands: so do torch's amax, numpy's max and ONNX's
#   reference evaluator. ONNX Runtime's own elementwise Max keeps it too.
# What happens: ReduceMax and ReduceMin of ONNX Runtime give NaN only if it is the first element of the reduced axis. At any
#   other place it is skipped, and the result is a plausible number.
# Why it matters: dynamic quantization takes its scale from ReduceMax(Abs(x)). A NaN that an overflow left in the activations is
#   gone behind it in one runtime and poisons the row in the other, so a comparison of both finds the wrong culprit.
source "$(dirname "$0")/common.sh"
install onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
run_python <<'PY'
import numpy as np
import onnx.parser
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator
from seen import seen

N = 64
rows = np.tile(np.arange(N, dtype=np.float32), (N, 1))
np.fill_diagonal(rows, np.nan)  # row i has its NaN at position i
for op in ("ReduceMax", "ReduceMin"):
    model = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["": 23]> g (float[M,N] x) => (float[M] y) <int64[1] axis = {{1}}> '
        f"{{ y = {op} <keepdims = 0> (x, axis) }}"
    )
    got = ort.InferenceSession(model.SerializeToString()).run(None, {"x": rows})[0]
    want = ReferenceEvaluator(model).run(None, {"x": rows})[0]
    seen(f"{op} over {N} rows with one NaN each: rows that are NaN by the reference", int(np.isnan(want).sum()), N)
    seen("    in ONNX Runtime: the NaN's position in these rows", np.flatnonzero(np.isnan(got)).tolist(), [0])
pair = onnx.parser.parse_model(
    '<ir_version: 10, opset_import: ["": 23]> g (float[N] a, float[N] b) => (float[N] y) { y = Max (a, b) }'
)
a, b = np.array([np.nan, 1], np.float32), np.array([1, np.nan], np.float32)
got = ort.InferenceSession(pair.SerializeToString()).run(None, {"a": a, "b": b})[0]
seen("Max of (NaN, 1) and (1, NaN) in ONNX Runtime is NaN twice", bool(np.isnan(got).all()), True)
PY
