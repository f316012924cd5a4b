#!/usr/bin/env bash
# tensorrt-rtx 1.7.1.116 (CPU only), onnx 1.23.2
#
# Expected: float64 is no type of TensorRT's, so a graph in float64 is refused, as one in int16 is ("Failed to import initializer").
# What happens: inputs, outputs, constants and casts in float64 all become float32, without a warning: 2^24 + 1 becomes 2^24.
#   The engine's bindings are float32 where the ONNX file declares float64.
# Why it matters: diffusion models compute rotary and timestep tables in float64 on purpose; the engine's differ in the
#   last digits, larger with position. And a caller who fills bindings by the ONNX file's types hands over twice the bytes.
source "$(dirname "$0")/common.sh"
install tensorrt-rtx==1.7.1.116 onnx==1.23.2 numpy==2.4.6
run_python <<'PY'
from rtx import Parsed
from seen import seen

HEAD = '<ir_version: 10, opset_import: ["": 23]> '
parsed = Parsed(HEAD + "g (double[2] x) => (double[2] y) <double[2] w = {16777217, 1}> { y = Add (x, w) }")
seen("errors and warnings", [parsed.errors, *parsed.warnings], [""])
seen("input, output", (parsed.network.get_input(0).dtype.name, parsed.network.get_output(0).dtype.name), ("FLOAT", "FLOAT"))
weights = parsed.layers[0].weights
seen("the constant 16777217", (str(weights.dtype), float(weights[0])), ("float32", 16777216.0))
seen("it builds", parsed.build(89) is not None, True)
short = Parsed(HEAD + "g (float[2] x) => (float[2] y) <int16[2] w = {1, 2}> { c = Cast <to = 1> (w)  y = Add (x, c) }")
seen("an int16 constant parses", short.ok, False)
PY
