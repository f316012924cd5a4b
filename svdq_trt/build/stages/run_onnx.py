"""Stage: run one ONNX file in ONNX Runtime on the check's inputs; the only stage that holds a session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from svdq_trt.base.progress import Progress


def run(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """args: model, onnx, sizes, seed, out; lora_slots: file of a graph that has slots, which stay empty."""
    import torch

    from svdq_export import write_float32_twin
    from svdq_trt.evaluate.onnx_run import run_onnx
    from svdq_trt.models import get_model

    spec, onnx = get_model(args["model"]), Path(args["onnx"])
    example = spec.example_inputs(**args["sizes"], seed=args["seed"])
    inputs = {io.name: tensor for io, tensor in zip(spec.inputs, example, strict=True)}
    progress(0, 1, f"{onnx.name} in ONNX Runtime")
    if args.get("lora_slots"):
        from svdq_trt.runtime.lora import LoraSlots

        inputs |= LoraSlots(Path(args["lora_slots"])).views
    if spec.torch_dtype == torch.bfloat16:  # ONNX Runtime's CPU has no bf16 arithmetic: same graph and data, in f32
        onnx, inputs = write_float32_twin(onnx), {name: t.float() for name, t in inputs.items()}
    feed = {name: tensor.numpy() for name, tensor in inputs.items()}
    try:
        return {"seconds": run_onnx(onnx, feed, Path(args["out"]))}
    finally:
        if onnx != Path(args["onnx"]):
            onnx.unlink()
