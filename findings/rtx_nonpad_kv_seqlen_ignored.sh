#!/usr/bin/env bash
# tensorrt-rtx 1.7.1.116 (CPU only), onnx 1.23.2, onnxruntime 1.32.0
#
# Expected: Attention's input nonpad_kv_seqlen (opset 24) says how many keys of each sample are real; the rest take no part.
#   A parser without it would refuse, as this one refuses softcap and softmax_precision in so many words.
# What happens: TensorRT-RTX parses and builds it and drops the input: no layer of the network reads it, so padding
#   is attended to. ONNX Runtime's result does depend on it.
# Why it matters: it is the cheap way to batch prompts of different lengths. The engine runs, its samples with short
#   prompts are wrong, and nothing says so. Give a boolean mask instead.
source "$(dirname "$0")/common.sh"
install tensorrt-rtx==1.7.1.116 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
run_python <<'PY'
import numpy as np
import onnx.parser
import onnxruntime as ort
from rtx import Parsed
from seen import seen

TENSOR = "float16[2,4,128,64]"
MODEL = f"""<ir_version: 11, opset_import: ["": 24]> g ({TENSOR} q, {TENSOR} k, {TENSOR} v, int64[2] real) => ({TENSOR} y) {{
    y = Attention (q, k, v, , , , real) }}"""

session = ort.InferenceSession(onnx.parser.parse_model(MODEL).SerializeToString())
rng = np.random.default_rng(0)
feeds = {name: rng.standard_normal((2, 4, 128, 64)).astype(np.float16) for name in "qkv"}
few, all_keys = (session.run(None, feeds | {"real": np.array([n, n])})[0] for n in (10, 128))
seen("10 real keys and 128 differ in ONNX Runtime", bool(np.abs(few - all_keys).max() > 0.5), True)
parsed = Parsed(MODEL)
read = {t.name for layer in parsed.layers for t in map(layer.get_input, range(layer.num_inputs)) if t is not None}
seen("errors of TensorRT-RTX", parsed.errors, "")
seen("inputs that its layers read", sorted(read & {"q", "k", "v", "real"}), ["k", "q", "v"])
seen("it builds", parsed.build(89) is not None, True)
PY
