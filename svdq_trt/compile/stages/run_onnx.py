"""Stage: run one ONNX file in ONNX Runtime on the check's inputs; the only stage that holds a session."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from svdq_trt.compile.events import Progress


def run(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """args: model, onnx, sizes, seed, out; lora_slots: file of a graph that has slots, which stay empty."""
    from svdq_trt.check.onnx_run import run_onnx
    from svdq_trt.models import get_model

    spec = get_model(args["model"])
    inputs = spec.example_inputs(**args["sizes"], seed=args["seed"])
    feed = {io.name: tensor.numpy() for io, tensor in zip(spec.inputs, inputs, strict=True)}
    if args.get("lora_slots"):
        from svdq_trt.runtime.lora import LoraSlots

        feed |= LoraSlots(Path(args["lora_slots"])).arrays()
    progress(0, 1, f"{Path(args['onnx']).name} in ONNX Runtime")
    return {"seconds": run_onnx(Path(args["onnx"]), feed, Path(args["out"]))}
