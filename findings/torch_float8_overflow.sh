#!/usr/bin/env bash
# torch 2.13.0 (on the CPU), ml-dtypes 0.5.4, onnxscript 0.7.2, onnx 1.23.2, onnxruntime 1.32.0
#
# Expected: `.to(float8)` has one rule for values above the largest: either it saturates or it overflows; numpy's float8
#   (ml_dtypes) has the same one, and the exported Cast too.
# What happens: torch saturates for e4m3fn, infinity included (448), and overflows to infinity for e5m2. ml_dtypes overflows for
#   both (NaN and infinity). The exporter writes a saturating Cast for both: ONNX Runtime gives 57344 where torch gives infinity.
# Why it matters: scales and codes that are made in torch and checked in numpy differ exactly at overflow, and there a NaN is a different diagnosis
#   from 448. Clamp first; then all agree.
source "$(dirname "$0")/common.sh"
install torch==2.13.0 ml-dtypes==0.5.4 onnxscript==0.7.2 onnx==1.23.2 onnx-ir==1.1.0 onnxruntime==1.32.0 numpy==2.4.6
run_python <<'PY'
import ml_dtypes
import numpy as np
import onnxruntime as ort
import torch
from dynamo import export
from seen import seen

X = torch.tensor([448.0, 500.0, 70000.0, float("inf")])
print(f"x: {X.tolist()}")
for name, in_torch, in_numpy, exported in (
    ("float8_e4m3fn", "448 448 448 448", "448 nan nan nan", "448 448 448 448"),
    ("float8_e5m2", "448 512 inf inf", "448 512 inf inf", "448 512 57344 57344"),
):
    def words(values):
        return " ".join(f"{v:g}" for v in np.asarray(values))

    def round_trip(x, dtype=getattr(torch, name)):
        return x.to(dtype).float()

    seen(f"{name} in torch", words(round_trip(X)), in_torch)
    with np.errstate(over="ignore", invalid="ignore"):
        seen(f"{name} in ml_dtypes", words(X.numpy().astype(getattr(ml_dtypes, name)).astype(np.float32)), in_numpy)
    session = ort.InferenceSession(export(round_trip, X).SerializeToString())
    seen(f"{name} exported", words(session.run(None, {session.get_inputs()[0].name: X.numpy()})[0]), exported)
PY
