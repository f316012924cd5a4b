#!/usr/bin/env bash
# onnx 1.23.2, onnxruntime 1.32.0
#
# Expected: onnx.version_converter converts a model with model-local functions, bodies included, or refuses it.
# What happens: the result has no function at all; the nodes that called them are left. Nothing is raised, and onnx.checker
#   with full_check accepts the result, since an op of an unknown domain is fine to it. ONNX Runtime can't load it.
# Why it matters: a runtime that has a plugin under the op's name still takes the file, so the loss of the portable bodies shows only on the
#   next machine. Inline functions first, or export at the opset that is wanted.
source "$(dirname "$0")/common.sh"
install onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
run_python <<'PY'
import onnx.parser
import onnx.version_converter
import onnxruntime as ort
from seen import seen

model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 21, "local": 1]> g (float[2] x) => (float[2] y) {
        y = local.Twice (x) }
    <domain: "local", opset_import: ["": 21]> Twice (x) => (y) { y = Add (x, x) }""")
converted = onnx.version_converter.convert_version(model, 23)
seen("functions before and after", (len(model.functions), len(converted.functions)), (1, 0))
seen("nodes after", [f"{node.domain}::{node.op_type}" for node in converted.graph.node], ["local::Twice"])
onnx.checker.check_model(converted, full_check=True)
print("onnx.checker, full check: no complaint")
try:
    ort.InferenceSession(converted.SerializeToString())
    loads = True
except Exception as error:
    loads = False
    print(f"ONNX Runtime: {error}")
seen("ONNX Runtime loads it", loads, False)
PY
