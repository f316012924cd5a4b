#!/usr/bin/env bash
# tensorrt-rtx 1.7.1.116 (CPU only), onnx 1.23.2
#
# Expected: a second optimization profile with the same shapes as the first costs next to nothing: weights are
#   shared between profiles, and so could the code be.
# What happens: weights are shared, code is not. Each profile brings all kernels of the network again, byte for byte as
#   many, even if it equals the one before.
# Why it matters: a plan with a profile per resolution grows by its whole code with each, and so do the time to read it and to compile it
#   on the user's GPU. One profile with a wide range is cheaper than several narrow ones.
source "$(dirname "$0")/common.sh"
install tensorrt-rtx==1.7.1.116 onnx==1.23.2 numpy==2.4.6
run_python <<'PY'
from rtx import Parsed
from seen import seen

TENSOR = "float16[2,4,L,64]"
CODE = f"""<ir_version: 10, opset_import: ["": 23]> g ({TENSOR} q, {TENSOR} k, {TENSOR} v) => ({TENSOR} y) {{
    y = Attention (q, k, v) }}"""
profile = {name: [(2, 4, tokens, 64) for tokens in (256, 512, 1024)] for name in "qkv"}
sizes = {count: len(Parsed(CODE).build(89, profiles=[profile] * count)) for count in (1, 2, 4)}
print(f"bytes of an attention's plan with 1, 2 and 4 equal profiles: {sizes}")
seen("twice as large with 2", round(sizes[2] / sizes[1], 1), 2.0)
seen("four times with 4", round(sizes[4] / sizes[1], 1), 4.0)
PY
