#!/usr/bin/env bash
# onnx 1.23.2 (onnx.compose), onnxruntime 1.32.0
#
# Expected: add_prefix renames a model's own functions (it says so) and the calls of them, so that two models can be merged.
# What happens: it looks for calls by name only. A node of another domain that happens to have a function's name is renamed with it: a standard
#   Relu becomes `p_Relu` in the standard domain, which does not exist. The result is invalid, and nothing is raised.
# Why it matters: pipelines are glued together with onnx.compose (a VAE behind a denoiser). Functions named after the op that they
#   stand for are common, and exporters write them. Give functions names of their own, or pass rename_functions=False. The renaming
#   also hides an op from a plugin that is found by its op type.
source "$(dirname "$0")/common.sh"
install onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
run_python <<'PY'
import onnx.compose
import onnx.parser
from seen import seen

model = onnx.parser.parse_model("""<ir_version: 10, opset_import: ["": 23, "local": 1]> g (float[2] x) => (float[2] y) {
        t = Relu (x)  y = local.Relu (t) }
    <domain: "local", opset_import: ["": 23]> Relu (x) => (y) { y = Neg (x) }""")
onnx.checker.check_model(model, full_check=True)
prefixed = onnx.compose.add_prefix(model, "p_")
names = [f"{node.domain or 'standard'}::{node.op_type}" for node in prefixed.graph.node]
seen("nodes after add_prefix('p_')", names, ["standard::p_Relu", "local::p_Relu"])
try:
    onnx.checker.check_model(prefixed)
    valid = True
except onnx.checker.ValidationError as error:
    valid = False
    print(f"onnx.checker: {str(error).splitlines()[0]}")
seen("the result is valid", valid, False)
PY
