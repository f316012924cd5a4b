#!/usr/bin/env bash
# torch 2.13.0 (torch.onnx.export, dynamo), onnxscript 0.7.2, onnx 1.23.2
#
# Expected: torch.stack of a float16 and a float32 tensor is float32, and exports as such; torch.cat of the same two does, with a Cast.
# What happens: stack exports without a Cast, as a Concat of both types. The export raises nothing; the checker, ONNX Runtime and
#   TensorRT's parser refuse the file.
# Why it matters: sin and cos tables in float32 stacked with values in float16 are how rotary embeddings are written, and eager torch never
#   complains. Strongly typed TensorRT names the Concat, not the line. Cast before stack.
source "$(dirname "$0")/common.sh"
install torch==2.13.0 onnxscript==0.7.2 onnx==1.23.2 onnx-ir==1.1.0 numpy==2.4.6
run_python <<'PY'
import torch
from dynamo import complaint, export
from seen import seen

inputs = torch.randn(2, 4).half(), torch.randn(2, 4)
for join, casts, valid in ((torch.cat, 1, True), (torch.stack, 0, False)):
    seen(f"{join.__name__} in torch", join(inputs, -1).dtype, torch.float32)
    model = export(lambda a, b, join=join: join([a, b], -1), *inputs)
    seen(f"{join.__name__}, Casts exported", sum(node.op_type == "Cast" for node in model.graph.node), casts)
    said = complaint(model)
    print(f"onnx.checker: {said or 'no complaint'}")
    seen(f"{join.__name__}, valid", not said, valid)
PY
