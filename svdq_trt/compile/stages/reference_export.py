"""Stage: checkpoint -> model-fp16.onnx, the unquantized model that the check compares with."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from svdq_trt.compile.events import Progress


def run(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """args: model, checkpoint, random_weights, profile, out."""
    from svdq_trt.checkpoint import load
    from svdq_trt.compile.stages.graph import export_model
    from svdq_trt.models import get_model

    spec = get_model(args["model"])
    module = load(spec, args["checkpoint"], args["random_weights"], progress)
    return export_model(module, spec, args["profile"], Path(args["out"]), progress)
