"""Stage: checkpoint -> calib.safetensors -> svdq.safetensors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from svdq_trt.compile import freshness
from svdq_trt.compile.events import Progress

CALIBRATION = "calib.safetensors"
_STREAM_BYTES = 8 * 10**9  # of 16-bit weights


def run(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Load the model, calibrate unless that is fresh, quantize.

    A model above _STREAM_BYTES is never whole in memory: its layers' weights are read as each layer's turn comes.

    args: model, checkpoint, random_weights, skip, calibration, shared, calib_key, force, format, rank, preset, out,
    key.
    """
    from svdq_trt import calibrate
    from svdq_trt.checkpoint import load, open_weights
    from svdq_trt.models import get_model
    from svdq_trt.quantize.preset import get_preset
    from svdq_trt.quantize.run import quantize_model
    from svdq_trt.spec.formats import FORMATS

    spec = get_model(args["model"])
    module = spec.build()
    fp16_bytes = sum(t.numel() * 2 for t in module.parameters())
    read = None
    if fp16_bytes > _STREAM_BYTES:  # by size, not by free memory: the same model gives the same bits everywhere
        read = open_weights(spec, args["checkpoint"], args["random_weights"]).read
    else:
        module = load(spec, args["checkpoint"], args["random_weights"], progress)
    recipe = spec.recipe(module, tuple(args["skip"]))
    shared = Path(args["shared"])
    if args["force"] or freshness.lookup(shared, "calibrate", args["calib_key"]) is None:
        calibration = calibrate.collect(
            module, spec, recipe.groups, data=args["calibration"], read=read, progress=progress
        )
        calibration.save(shared / CALIBRATION)
        # Recorded at once: a build that is killed while it quantizes need not calibrate again.
        freshness.store(shared, "calibrate", args["calib_key"], [CALIBRATION], {})
    else:
        calibration = calibrate.Calibration.load(shared / CALIBRATION, recipe.groups)
    out = Path(args["out"])
    nodes = quantize_model(
        module, spec, recipe.groups, calibration, FORMATS[args["format"]], args["rank"], get_preset(args["preset"]),
        out, args["key"], progress, skip=tuple(args["skip"]), read=read,
    )  # fmt: skip
    return {
        "fp16_weight_bytes": fp16_bytes,
        "quantized_weight_bytes": out.stat().st_size,
        "kept_16bit": [{"name": k.name, "reason": k.reason} for k in recipe.kept],
        "mean_sqnr_db": round(sum(n.sqnr_db for n in nodes) / len(nodes), 2) if nodes else None,
        "nodes": len(nodes),
    }
