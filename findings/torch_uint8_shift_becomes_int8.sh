#!/usr/bin/env bash
# torch 2.13.0 (torch.onnx.export, dynamo), onnxscript 0.7.2, onnx 1.23.2, onnxruntime 1.32.0
#
# Expected: `x >> 4` and `x << 4` of a uint8 tensor are uint8, in torch and in the exported graph.
# What happens: the exporter casts the shift's result to int8. Alone it is merely of another type, and 15 << 4 is -16 instead of 240.
#   Together with `x & 15`, which stays uint8, it makes a Concat of two types: the usual way to unpack two 4-bit codes
#   from a byte exports without an error to a file that the checker and ONNX Runtime refuse.
# Why it matters: every 4-bit checkpoint has these two lines somewhere. Shift an int32 copy, or carry the bytes as int8 and divide.
source "$(dirname "$0")/common.sh"
install torch==2.13.0 onnxscript==0.7.2 onnx==1.23.2 onnx-ir==1.1.0 onnxruntime==1.32.0 numpy==2.4.6
run_python <<'PY'
import onnxruntime as ort
import torch
from dynamo import complaint, export
from seen import seen

BYTES = torch.arange(256, dtype=torch.uint8)


def shift(x):
    return x << 4


def unpack(x):
    return torch.stack([x & 15, x >> 4], -1)


session = ort.InferenceSession(export(shift, BYTES).SerializeToString())
got = session.run(None, {session.get_inputs()[0].name: BYTES.numpy()})[0]
seen("15 << 4 in torch", (str(shift(BYTES).dtype), int(shift(BYTES)[15])), ("torch.uint8", 240))
seen("15 << 4 exported", (str(got.dtype), int(got[15])), ("int8", -16))
said = complaint(export(unpack, BYTES))
print(f"onnx.checker on the exported unpacking: {said}")
seen("it complains of two types in a Concat", "Concat" in said and "inconsistent type" in said, True)
PY
