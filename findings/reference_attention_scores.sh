#!/usr/bin/env bash
# onnx 1.23.2 (onnx.reference), onnxruntime 1.32.0
#
# Expected: Attention's fourth output with qk_matmul_output_mode = 0 is "the output of qk matmul", 1 the scores after softcap. So with
#   softcap the two modes differ.
# What happens: the reference evaluator caps in both modes: with softcap = 1 no score that it calls raw is above 1. ONNX Runtime
#   returns the raw ones. In modes 1, 2 and 3, and without softcap, both agree.
# Why it matters: the raw scores are what one looks at to place a softcap, or to see whether f16 overflows before it; the reference says
#   "all small" whatever they are.
source "$(dirname "$0")/common.sh"
install onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
run_python <<'PY'
import numpy as np
import onnx.parser
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator
from seen import seen

rng = np.random.default_rng(0)
feeds = {name: (3 * rng.standard_normal((1, 2, 4, 8))).astype(np.float32) for name in "qkv"}
raw = feeds["q"] @ feeds["k"].swapaxes(2, 3) / np.sqrt(8)
for mode in range(4):
    model = onnx.parser.parse_model(
        '<ir_version: 10, opset_import: ["": 23]> '
        "g (float[1,2,4,8] q, float[1,2,4,8] k, float[1,2,4,8] v) => (float[1,2,4,8] y, float[1,2,4,4] scores) "
        f"{{ y, key, value, scores = Attention <softcap = 1.0, qk_matmul_output_mode = {mode}> (q, k, v) }}"
    )
    runtime = ort.InferenceSession(model.SerializeToString()).run(["scores"], feeds)[0]
    reference = ReferenceEvaluator(model).run(["scores"], feeds)[0]
    seen(f"mode {mode}: both agree", bool(np.allclose(runtime, reference, atol=1e-4)), mode != 0)
    if mode == 0:
        seen("    ONNX Runtime gives q times k", bool(np.allclose(runtime, raw, atol=1e-4)), True)
        seen("    the reference gives tanh of it", bool(np.allclose(reference, np.tanh(raw), atol=1e-4)), True)
PY
