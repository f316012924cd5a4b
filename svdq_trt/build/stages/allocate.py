"""Stage: a rank for every node, for ``--rank auto`` -> allocation.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from svdq_trt.base.device import all_threads, torch_device
from svdq_trt.base.errors import UsageError
from svdq_trt.base.progress import Progress
from svdq_trt.base.ranks import local_rank

CURVES = "curves.jsonl"


def run(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Open and calibrate as the quantizer does, measure each node's curve unless that is done, choose.

    args: model, checkpoint, random_weights, skip, calibration, shared, calib_key, force, format, device: as of stage
    `quantize`; budget_bytes, target_sqnr, sensitivity (path or None), curves_key, out.
    """
    from svdq_trt.artifact.sensitivity import Sensitivity
    from svdq_trt.base.journal import Journal
    from svdq_trt.build.stages.quantize import calibrate, open_model
    from svdq_trt.contract.formats import FORMATS
    from svdq_trt.quantize.allocate import allocate, measure_curves

    out = Path(args["out"])
    path = None if args["sensitivity"] is None else Path(args["sensitivity"])
    scan = None if path is None else Sensitivity.load(path)  # before any work
    if scan is not None and scan.model != args["model"]:
        raise UsageError("--sensitivity", f"{path}, a scan of {scan.model}", f"one of {args['model']}")
    device = torch_device(args["device"], local_rank())
    model = open_model(args, progress)
    calibration = calibrate(args, model, device, progress)
    journal = Journal(out.with_name(CURVES), args["curves_key"])
    with all_threads():
        curves = measure_curves(
            model.module,
            model.recipe.groups,
            calibration,
            FORMATS[args["format"]],
            model.spec.torch_dtype,
            journal,
            progress,
            model.read,
            device,
        )
    chosen = allocate(curves, args["budget_bytes"], args["target_sqnr"], scan, path.name if path else "")
    chosen.save(out)
    return chosen.summary()
