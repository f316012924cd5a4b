"""Stage: svdq.safetensors -> model.onnx (+ data), from the artifact alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from svdq_trt.compile.events import Progress


def run(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """args: model, artifact, profile, out."""
    from svdq_trt.compile.stages.graph import export_model
    from svdq_trt.models import get_model
    from svdq_trt.quantize import artifact
    from svdq_trt.quantize.run import restore_model

    spec = get_model(args["model"])
    progress(0, 1, "opening svdq.safetensors")
    loaded = artifact.load(Path(args["artifact"]))
    module = restore_model(loaded, spec)
    return export_model(module, spec, args["profile"], Path(args["out"]), progress)
