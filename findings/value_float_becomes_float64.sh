#!/usr/bin/env bash
# polygraphy 0.53.6 with onnx-graphsurgeon 0.6.1, onnxslim 0.1.98, onnx 1.23.2, onnxruntime 1.32.0
#
# Expected: tools that fold constants keep a constant's type. Constant(value_float = 0.5) is float32, by ONNX's definition.
# What happens: inside a model-local function both tools rewrite it as a float64 tensor, so the next op gets float32 and
#   float64. Both exit with 0; onnx.checker and ONNX Runtime refuse the file. The same constant as a `value` tensor survives both.
# Why it matters: these two are the usual clean-up before a TensorRT build, and the plain way to write a scalar in a function body is
#   value_float. Write `value` tensors in bodies.
source "$(dirname "$0")/common.sh"
install polygraphy==0.53.6 onnx-graphsurgeon==0.6.1 onnxslim==0.1.98 onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
run_python <<'PY'
import subprocess

import onnx.parser
import onnxruntime as ort
from seen import seen

TEXT = """<ir_version: 10, opset_import: ["": 23, "local": 1]> g (float[3] x) => (float[3] y)
        <float[3] a = {1, 2, 3}, float[3] b = {4, 5, 6}> { c = Add (a, b)  h = local.Half (x)  y = Mul (h, c) }
    <domain: "local", opset_import: ["": 23]> Half (x) => (y) { half = Constant <CONSTANT> ()  y = Mul (x, half) }"""
TOOLS = {
    "polygraphy": ["venv/bin/polygraphy", "surgeon", "sanitize", "--fold-constants", "in.onnx", "-o", "out.onnx"],
    "onnxslim": ["venv/bin/onnxslim", "in.onnx", "out.onnx"],
}


def loads(check, *args, **options):
    """Whether `check` raises nothing."""
    try:
        check(*args, **options)
    except Exception as error:
        print(f"    {str(error).strip().splitlines()[0][:150]}")
        return False
    return True


for tool, command in TOOLS.items():
    for constant, dtype in (("value_float = 0.5", "DOUBLE"), ("value = float {0.5}", "FLOAT")):
        model = onnx.parser.parse_model(TEXT.replace("CONSTANT", constant))
        onnx.checker.check_model(model, full_check=True)
        onnx.save(model, "in.onnx")
        subprocess.run(command, check=True, capture_output=True)
        result = onnx.load("out.onnx")
        written = result.functions[0].node[0].attribute[0].t.data_type
        seen(f"{tool}, Constant <{constant}> becomes", onnx.TensorProto.DataType.Name(written), dtype)
        valid = loads(onnx.checker.check_model, result, full_check=True), loads(ort.InferenceSession, "out.onnx")
        seen("    onnx.checker and ONNX Runtime take it", valid, (dtype == "FLOAT",) * 2)
PY
