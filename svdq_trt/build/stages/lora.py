"""Stage: svdq.safetensors + LoRA files -> svdq.safetensors with the LoRAs in it; nothing is quantized again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from svdq_trt.base.progress import Progress


def requests_of(loras: list[list[Any]]) -> list[Any]:
    """LoraRequests from JSON: [[path, strength], ...]."""
    from svdq_trt.lora.apply import LoraRequest

    return [LoraRequest(Path(path), float(strength)) for path, strength in loras]


def run(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """args: model, artifact, loras, allow_partial, out."""
    from svdq_trt.lora.apply import apply_loras
    from svdq_trt.models import get_model

    out = Path(args["out"])
    summary = apply_loras(
        Path(args["artifact"]),
        requests_of(args["loras"]),
        get_model(args["model"]),
        args["allow_partial"],
        out,
        progress,
    )
    return {"loras": summary, "quantized_weight_bytes": out.stat().st_size}
