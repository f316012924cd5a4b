#!/usr/bin/env bash
# tensorrt-rtx 1.7.1.116 (CPU only), onnx 1.23.2
#
# Expected: a model-local function can be called any number of times; the parser inlines each call, as it does for a function
#   of MatMul and Add.
# What happens: a function with a DequantizeLinear of an int8 weight can be called once. The second call is refused: "Failed attempt to
#   rename a layer ... the new name is already in use". Other layers with a taken name are renamed with a warning.
# Why it matters: a quantized linear as a function, called once per layer, is the natural ONNX for a quantized model. It
#   passes the checker, runs in ONNX Runtime, works in a test with one layer, and fails for two. Inline it beforehand.
source "$(dirname "$0")/common.sh"
install tensorrt-rtx==1.7.1.116 onnx==1.23.2 numpy==2.4.6
run_python <<'PY'
import onnx.inliner
import onnx.parser
from rtx import Parsed
from seen import seen

HEAD = """<ir_version: 10, opset_import: ["": 23, "local": 1]> g (float[2,2] x) => (float[2,2] y)
    <int8[2,2] v = {1, 2, 3, 4}, int8[2,2] w = {5, 6, 7, 8}> """
QUANTIZED = """<domain: "local", opset_import: ["": 23]> Linear (x, q) => (y) {
    scale = Constant <value = float {0.5}> ()  weight = DequantizeLinear (q, scale)  y = MatMul (x, weight) }"""
PLAIN = """<domain: "local", opset_import: ["": 23]> Linear (x, q) => (y) {
    scale = Constant <value = float {0.5}> ()  weight = Mul (x, scale)  y = MatMul (x, weight) }"""
ONCE, TWICE = "{ y = local.Linear (x, w) }", "{ t = local.Linear (x, v)  y = local.Linear (t, w) }"

seen("one call parses", Parsed(HEAD + ONCE + QUANTIZED).ok, True)
seen("two calls without DequantizeLinear parse", Parsed(HEAD + TWICE + PLAIN).ok, True)
two = Parsed(HEAD + TWICE + QUANTIZED)
seen("two calls parse", two.ok, False)
seen("the reason", "Failed attempt to rename a layer" in two.errors, True)
inlined = onnx.inliner.inline_local_functions(onnx.parser.parse_model(HEAD + TWICE + QUANTIZED))
seen("two calls, inlined by onnx, parse", Parsed(onnx.printer.to_text(inlined)).ok, True)
PY
