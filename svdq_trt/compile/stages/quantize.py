"""Stage: checkpoint -> calib.safetensors -> svdq.safetensors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svdq_trt.compile import freshness
from svdq_trt.compile.events import Progress

if TYPE_CHECKING:
    from torch import Tensor, nn

    from svdq_trt.calibrate import Calibration
    from svdq_trt.models import ModelSpec
    from svdq_trt.models.recipe import Recipe

CALIBRATION = "calib.safetensors"
_STREAM_BYTES = 8 * 10**9  # of 16-bit weights


@dataclass(frozen=True)
class Prepared:
    """A model ready to be quantized.

    Attributes:
        module: in 16 bit; on meta where the model is streamed, and `read` gives its parameters.
        recipe: groups and kept layers. calibration: of all groups.
    """

    spec: ModelSpec
    module: nn.Module
    read: Callable[[str], Tensor] | None
    recipe: Recipe
    calibration: Calibration


def prepare(args: dict[str, Any], progress: Progress) -> Prepared:
    """Load the model, calibrate unless that is fresh.

    A model above _STREAM_BYTES is never whole in memory: its layers' weights are read as each layer's turn comes.

    args: model, checkpoint, random_weights, skip, calibration, shared, calib_key, force.
    """
    from svdq_trt import calibrate
    from svdq_trt.checkpoint import load, open_weights
    from svdq_trt.models import get_model

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
    return Prepared(spec, module, read, recipe, calibration)


def run(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Prepare, quantize.

    args: as `prepare`; format, rank, allocation (file of stage `allocate`, whose ranks go before `rank`; or None),
    preset, out, key.
    """
    from svdq_trt.quantize.allocate import REASON, Allocation
    from svdq_trt.quantize.preset import get_preset
    from svdq_trt.quantize.run import quantize_model
    from svdq_trt.spec.formats import FORMATS

    ready = prepare(args, progress)
    recipe, skip, rank, notes = ready.recipe, tuple(args["skip"]), args["rank"], {}
    if args["allocation"] is not None:
        chosen = Allocation.load(Path(args["allocation"]))
        rank, notes, skip = chosen.ranks, {"allocation": chosen.summary()}, (*skip, *chosen.kept)
        recipe = ready.spec.recipe(ready.module, skip)
    fp16_bytes = sum(t.numel() * 2 for t in ready.module.parameters())
    out = Path(args["out"])
    nodes = quantize_model(
        ready.module, ready.spec, recipe.groups, ready.calibration, FORMATS[args["format"]], rank,
        get_preset(args["preset"]), out, args["key"], progress, skip=skip, read=ready.read, notes=notes,
    )  # fmt: skip
    before = {k.name for k in ready.recipe.kept}
    return {
        "fp16_weight_bytes": fp16_bytes,
        "quantized_weight_bytes": out.stat().st_size,
        "kept_16bit": [{"name": k.name, "reason": k.reason if k.name in before else REASON} for k in recipe.kept],
        "mean_sqnr_db": round(sum(n.sqnr_db for n in nodes) / len(nodes), 2) if nodes else None,
        "nodes": len(nodes),
        "rank": rank if isinstance(rank, int) else max(rank.values(), default=0),
    }
