"""Stage: checkpoint -> calib.safetensors -> svdq.safetensors; alone, or one of several ranks that share the layers."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svdq_trt.base.device import all_threads, torch_device
from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.progress import Progress
from svdq_trt.base.ranks import Alone, Crew, local_rank
from svdq_trt.build import freshness

if TYPE_CHECKING:
    import torch
    from torch import nn

    from svdq_trt.artifact.calibration import Calibration
    from svdq_trt.artifact.svdq_file import Node
    from svdq_trt.models import ModelSpec
    from svdq_trt.models.recipe import Recipe

CALIBRATION = "calib.safetensors"
_STREAM_BYTES = 8 * 10**9  # of 16-bit weights


def run(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Open the model, calibrate unless that is fresh, quantize.

    args: model, checkpoint, random_weights, skip, calibration, shared, calib_key, force, format, rank, allocation (file
    of stage `allocate`, whose ranks go before `rank`; or None), preset, device ("cpu" or "cuda"), out, key; job: the
    number under which the ranks share it, absent without others.
    """
    from svdq_trt.quantize.run import top_rank

    crew: Alone = Crew(args["job"]) if "job" in args else Alone()
    device = torch_device(args["device"], local_rank())
    start = time.monotonic()
    model = open_model(args, progress, stream=crew.rank > 0)
    opened = time.monotonic()
    if crew.rank == 0:
        calibration = calibrate(args, model, device, progress)
        crew.calibrated()
    else:
        crew.wait_for_calibration()
        calibration = _finished_calibration(args, model)
    calibrated = time.monotonic()
    goal = target(args, model)
    nodes = quantize(args, model, goal, calibration, device, progress, crew)
    if crew.rank:
        return {}
    seconds = {"open": opened - start, "calibrate": calibrated - opened, "quantize": time.monotonic() - calibrated}
    return {
        "fp16_weight_bytes": model.fp16_bytes,
        "quantized_weight_bytes": Path(args["out"]).stat().st_size,
        "kept_16bit": [{"name": k.name, "reason": k.reason} for k in goal.recipe.kept],
        "mean_sqnr_db": round(sum(n.sqnr_db for n in nodes) / len(nodes), 2) if nodes else None,
        "nodes": len(nodes),
        "rank": top_rank(goal.rank),
        "device": device.type,
        "notes": notes(args["preset"], device),
        "ranks": crew.size,
        "seconds": {name: round(value, 2) for name, value in seconds.items()},
    }


def notes(preset: str, device: torch.device) -> list[str]:
    """What a person should know of how it was quantized."""
    from svdq_trt.quantize.gptq import rounding_on
    from svdq_trt.quantize.preset import get_preset

    if device.type == "cpu" or not get_preset(preset).gptq:
        return []
    note = rounding_on(device).note
    return [note] if note else []


@dataclass(frozen=True)
class OpenModel:
    """A model to quantize: its module, with its weights or, with `read` to have them from, on meta."""

    spec: ModelSpec
    module: nn.Module
    recipe: Recipe
    read: Callable[[str], torch.Tensor] | None
    fp16_bytes: int


def open_model(args: dict[str, Any], progress: Progress, stream: bool = False) -> OpenModel:
    """The model with its weights. Above _STREAM_BYTES, or on request, it is never whole in memory."""
    from svdq_trt.checkpoint import load, open_weights
    from svdq_trt.models import get_model

    spec = get_model(args["model"])
    module = spec.build()
    fp16_bytes = sum(t.numel() * 2 for t in module.parameters())
    read = None
    if stream or fp16_bytes > _STREAM_BYTES:  # not by free memory: the same model gives the same bits everywhere
        read = open_weights(spec, args["checkpoint"], args["random_weights"]).read
    else:
        module = load(spec, args["checkpoint"], args["random_weights"], progress)
    return OpenModel(spec, module, spec.recipe(module, tuple(args["skip"])), read, fp16_bytes)


def calibrate(args: dict[str, Any], model: OpenModel, device: torch.device, progress: Progress) -> Calibration:
    """calib.safetensors, made unless it is fresh; where there are other ranks, they wait for it."""
    from svdq_trt.calibrate import collect

    shared = Path(args["shared"])
    if not args["force"] and freshness.lookup(shared, "calibrate", args["calib_key"]) is not None:
        with suppress(ArtifactError):  # damaged all the same: made again
            return _finished_calibration(args, model)
    with all_threads():
        calibration = collect(
            model.module,
            model.spec,
            model.recipe.groups,
            data=args["calibration"],
            read=model.read,
            device=device,
            progress=progress,
        )
    calibration.save(shared / CALIBRATION)
    # Recorded at once: a build that is killed while it quantizes need not calibrate again.
    freshness.store(shared, "calibrate", args["calib_key"], [CALIBRATION], {})
    return calibration


def _finished_calibration(args: dict[str, Any], model: OpenModel) -> Calibration:
    from svdq_trt.artifact.calibration import Calibration

    return Calibration.load(Path(args["shared"]) / CALIBRATION, [group.node for group in model.recipe.groups])


@dataclass(frozen=True)
class Target:
    """What is quantized, and to which rank.

    Attributes:
        recipe: groups and kept layers. skip: patterns that give these groups.
        rank: R for all nodes, or of each. notes: for the artifact's metadata.
    """

    recipe: Recipe
    skip: tuple[str, ...]
    rank: int | Mapping[str, int]
    notes: Mapping[str, Any]


def target(args: dict[str, Any], model: OpenModel) -> Target:
    """As the options say, or as stage `allocate` chose. Raises ArtifactError: a damaged file of that stage."""
    skip = tuple(args["skip"])
    if args["allocation"] is None:
        return Target(model.recipe, skip, args["rank"], {})
    from svdq_trt.artifact.allocation import Allocation
    from svdq_trt.quantize.allocate import REASON

    chosen = Allocation.load(Path(args["allocation"]))
    skip = (*skip, *chosen.kept)
    recipe, before = model.spec.recipe(model.module, skip), {k.name for k in model.recipe.kept}
    kept = tuple(k if k.name in before else replace(k, reason=REASON) for k in recipe.kept)
    return Target(replace(recipe, kept=kept), skip, chosen.ranks, {"allocation": chosen.summary()})


def quantize(
    args: dict[str, Any],
    model: OpenModel,
    goal: Target,
    calibration: Calibration,
    device: torch.device,
    progress: Progress,
    crew: Alone,
) -> list[Node]:
    """svdq.safetensors; on a rank other than 0 its share of the layers, and []."""
    from svdq_trt.contract.formats import FORMATS
    from svdq_trt.quantize.preset import get_preset
    from svdq_trt.quantize.run import quantize_model

    return quantize_model(
        model.module,
        model.spec,
        goal.recipe.groups,
        calibration,
        FORMATS[args["format"]],
        goal.rank,
        get_preset(args["preset"]),
        Path(args["out"]),
        args["key"],
        progress,
        skip=goal.skip,
        read=model.read,
        notes=goal.notes,
        device=device,
        crew=crew,
    )
