"""Stage: checkpoint -> model-fp16.onnx, the unquantized model that the check compares with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from svdq_trt.base.progress import Progress


def run(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """args: model, checkpoint, random_weights, profile, out, loras, allow_partial."""
    from svdq_trt.build.stages.graph import export_model
    from svdq_trt.checkpoint import load
    from svdq_trt.models import get_model

    spec = get_model(args["model"])
    module = load(spec, args["checkpoint"], args["random_weights"], progress)
    if args["loras"]:  # what the engine with LoRAs is compared with: the same LoRAs merged before quantization
        from svdq_trt.build.stages.lora import requests_of
        from svdq_trt.lora.apply import layer_shapes, merge_into, open_loras

        merge_into(module, open_loras(requests_of(args["loras"]), spec, layer_shapes(spec), args["allow_partial"]))
    return export_model(module, spec, args["profile"], Path(args["out"]), progress)
