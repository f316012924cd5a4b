#!/usr/bin/env bash
# tensorrt-rtx 1.7.1.116 (CPU only), onnx 1.23.2
#
# Expected: a plan built for SM86 and SM89 holds what each of them would have got alone; that is what a second target costs.
# What happens: it holds the attention kernel of the oldest target only, in whatever order they are named; it is as large as
#   the plan for that one alone. The newer GPU's own kernel is not in the file, and SM89's and SM120's plans alone do hold another one.
# Why it matters: "one plan for all our users" runs everywhere, so the loss shows only as a slower step on the newer
#   GPUs: half of a diffusion step is attention. Build one plan per generation.
source "$(dirname "$0")/common.sh"
install tensorrt-rtx==1.7.1.116 onnx==1.23.2 numpy==2.4.6
run_python <<'PY'
import re

from rtx import Parsed
from seen import seen

TENSOR = "float16[2,4,1024,64]"
MODEL = f"""<ir_version: 10, opset_import: ["": 23]> g ({TENSOR} q, {TENSOR} k, {TENSOR} v) => ({TENSOR} y) {{
    y = Attention (q, k, v) }}"""


def plan(*archs):
    """Bytes of the plan, and the names of the attention kernels in it, each with a digest of its code."""
    data = Parsed(MODEL).build(*archs)
    return len(data), set(re.findall(rb"_gemm_mha_v2_0x[0-9a-f]{32}", data))


alone = {arch: plan(arch) for arch in (86, 89, 120)}
for arch, (size, kernels) in alone.items():
    print(f"SM{arch} alone: {size:,} bytes, {[k.decode() for k in kernels]}")
seen("SM86 and SM89 alone have one kernel each, not the same", len(alone[86][1] | alone[89][1]), 2)
for archs in ((86, 89), (89, 86), (86, 120)):
    size, kernels = plan(*archs)
    seen(f"SM{archs[0]} + SM{archs[1]}, {size:,} bytes, holds SM86's kernel only", kernels == alone[86][1], True)
    seen("    and is as large as SM86's plan, within 1 kB", abs(size - alone[86][0]) < 1000, True)
PY
