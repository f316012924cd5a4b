"""Stage: run one ONNX file in ONNX Runtime on the check's inputs; the only stage that holds a session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from svdq_trt.compile.events import Progress


def run(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """args: model, onnx, sizes, seed, out."""
    import torch

    from svdq_export import write_float32_twin
    from svdq_trt.check.onnx_run import run_onnx
    from svdq_trt.models import get_model

    spec, onnx = get_model(args["model"]), Path(args["onnx"])
    inputs = spec.example_inputs(**args["sizes"], seed=args["seed"])
    progress(0, 1, f"{onnx.name} in ONNX Runtime")
    if spec.torch_dtype == torch.bfloat16:  # ONNX Runtime's CPU has no bf16 arithmetic: same graph and data, in f32
        onnx, inputs = write_float32_twin(onnx), tuple(t.float() for t in inputs)
    feed = {io.name: tensor.numpy() for io, tensor in zip(spec.inputs, inputs, strict=True)}
    try:
        return {"seconds": run_onnx(onnx, feed, Path(args["out"]))}
    finally:
        if onnx != Path(args["onnx"]):
            onnx.unlink()
