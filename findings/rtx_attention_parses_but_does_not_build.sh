#!/usr/bin/env bash
# tensorrt-rtx 1.7.1.116 (CPU only), onnx 1.23.2
#
# Expected: an Attention node (opset 23) that the parser takes can be built; without a fused kernel TensorRT falls back to matmuls and
#   a softmax, which is what it does when the file spells these out.
# What happens: the parser marks the node as not to be decomposed, so the build fails ("Attention operation was not
#   supported by a dedicated kernel") for float32, for heads wider than 256, and, oddly, for batch 1 with one head: batch 2
#   with one head builds, batch 1 with two heads does.
# Why it matters: exporters write Attention from opset 23 on. A float32 check build, and the one-headed attention of a VAE's middle
#   block, fail only after parsing, in the builder. Export those at opset 22 or below, or spell attention out.
source "$(dirname "$0")/common.sh"
install tensorrt-rtx==1.7.1.116 onnx==1.23.2 numpy==2.4.6
run_python <<'PY'
from rtx import LOG, Parsed
from seen import seen


def attention(dtype, batch, heads, width):
    tensor = f"{dtype}[{batch},{heads},128,{width}]"
    inputs = ", ".join(f"{tensor} {name}" for name in "qkv")
    return f'<ir_version: 10, opset_import: ["": 23]> g ({inputs}) => ({tensor} y) {{ y = Attention (q, k, v) }}'


for case, builds in (
    (("float16", 2, 4, 64), True),
    (("float", 2, 4, 64), False),
    (("float16", 2, 4, 256), True),
    (("float16", 2, 4, 264), False),
    (("float16", 1, 2, 64), True),
    (("float16", 2, 1, 64), True),
    (("float16", 1, 1, 64), False),
):
    parsed = Parsed(attention(*case))
    built = parsed.build(89) is not None
    seen("%s, batch %d, heads %d of %d: parses, builds" % case, (parsed.ok, built), (True, builds))
    if not built:
        seen("    no dedicated kernel", any("not supported by a dedicated kernel" in line for line in LOG.lines), True)
PY
