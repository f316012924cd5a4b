"""Stage: a rank for every node, for ``--rank auto`` -> allocation.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from svdq_trt.compile.events import Progress

CURVES = "curves.jsonl"


def run(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Prepare as the quantizer does, measure each node's curve unless that is done, choose.

    args: as quantize.prepare; format, budget_bytes, target_sqnr, sensitivity (path or None), curves_key, out.
    """
    from svdq_trt.compile.stages.quantize import prepare
    from svdq_trt.journal import Journal
    from svdq_trt.quantize.allocate import allocate, measure_curves
    from svdq_trt.quantize.sensitivity import Sensitivity
    from svdq_trt.spec.formats import FORMATS

    out = Path(args["out"])
    path = None if args["sensitivity"] is None else Path(args["sensitivity"])
    scan = None if path is None else Sensitivity.load(path)  # before any work
    ready = prepare(args, progress)
    journal = Journal(out.with_name(CURVES), args["curves_key"])
    curves = measure_curves(ready.module, ready.recipe.groups, ready.calibration, FORMATS[args["format"]],
                            ready.spec.torch_dtype, journal, progress, ready.read)  # fmt: skip
    chosen = allocate(curves, args["budget_bytes"], args["target_sqnr"], scan, path.name if path else "")
    chosen.save(out)
    return chosen.summary()
