"""Stage: checkpoint -> calib.safetensors -> svdq.safetensors; on one rank, or on several that share the layers."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

from svdq_trt.artifact.manifest import LeftOut
from svdq_trt.base.progress import Progress
from svdq_trt.build.stage import File, Result, SharedStage
from svdq_trt.build.stages.calibrate import Calibrate

if TYPE_CHECKING:
    import torch

    from svdq_trt.artifact.calibration import Calibration
    from svdq_trt.artifact.svdq_file import Node
    from svdq_trt.base.ranks import Alone
    from svdq_trt.build.model_source import OpenModel
    from svdq_trt.build.work import Work
    from svdq_trt.models.recipe import Recipe

FILE = "svdq.safetensors"


@dataclass(frozen=True)
class Quantized(Result):
    """The quantized model in figures.

    Attributes:
        fp16_weight_bytes, quantized_weight_bytes: sizes before and after. kept_16bit: layers that were not quantized.
        mean_sqnr_db: mean over the nodes; None where unknown. rank: the largest R. device, ranks: what it was
            quantized on. seconds: by step.
    """

    fp16_weight_bytes: int
    quantized_weight_bytes: int
    kept_16bit: tuple[LeftOut, ...]
    mean_sqnr_db: float | None
    nodes: int
    rank: int
    device: str = ""
    ranks: int = 1
    seconds: dict[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Quantize(SharedStage[Quantized]):
    """Open the model, calibrate it unless that is done, and quantize it.

    Attributes:
        rank: R of all nodes, unless stage Allocate chose one for each: then `allocation` is its file.
        preset: how hard the quantizer searches.
    """

    name = "quantize"
    result = Quantized

    calibrate: Calibrate
    format: str
    rank: int
    allocation: File | None
    preset: str

    @classmethod
    def of(cls, work: Work, fmt: str, calibrate: Calibrate, allocation: File | None) -> Quantize:
        """The stage for one format of a build."""
        out = work.quantized_folder(fmt) / FILE
        return cls(calibrate, fmt, work.config.rank, allocation, work.config.preset, out=out)

    @property
    def label(self) -> str:
        """Label shown while it runs."""
        return f"quantize  {self.format} rank {self.rank if self.allocation is None else 'auto'}"

    def imports(self) -> None:
        """Import the quantizer and the model's class."""
        import svdq_trt.quantize.run  # noqa: F401

        self.calibrate.weights.imports()

    def run(self, progress: Progress) -> Quantized | None:
        """Quantize the model, or this rank's share of it."""
        from svdq_trt.base.device import torch_device
        from svdq_trt.base.ranks import Alone, Crew, local_rank
        from svdq_trt.quantize.run import top_rank

        crew: Alone = Alone() if self.job is None else Crew(self.job)
        device = torch_device(self.calibrate.device, local_rank())
        start = time.monotonic()
        model = self.calibrate.open(progress, stream=crew.rank > 0)
        opened = time.monotonic()
        if crew.rank == 0:
            calibration = self.calibrate.calibration(model, device, progress)
            crew.calibrated()
        else:
            crew.wait_for_calibration()
            calibration = self.calibrate.finished(model)
        calibrated = time.monotonic()
        goal = self.target(model)
        layers: list[float] = []
        nodes = self.quantize(model, goal, calibration, device, progress, crew, lambda: layers.append(time.monotonic()))
        if crew.rank:
            return None
        laps = (start, opened, calibrated, *layers, time.monotonic())
        steps = ("open", "calibrate", "quantize", "write")
        seconds = {step: end - begin for step, (begin, end) in zip(steps, itertools.pairwise(laps), strict=True)}
        return Quantized(
            fp16_weight_bytes=model.fp16_bytes,
            quantized_weight_bytes=self.out.stat().st_size,
            kept_16bit=tuple(LeftOut(k.name, k.reason) for k in goal.recipe.kept),
            mean_sqnr_db=round(sum(n.sqnr_db for n in nodes) / len(nodes), 2) if nodes else None,
            nodes=len(nodes),
            rank=top_rank(goal.rank),
            device=device.type,
            ranks=crew.size,
            seconds={name: round(value, 2) for name, value in seconds.items()},
            notes=notes(self.preset, device),
        )

    def target(self, model: OpenModel) -> Target:
        """What to quantize, by the options or by stage Allocate. Raises ArtifactError: Allocate's file is damaged."""
        skip = self.calibrate.skip
        if self.allocation is None:
            return Target(model.recipe, skip, self.rank, {})
        from svdq_trt.artifact.allocation import Allocation
        from svdq_trt.build.stage import to_builtins
        from svdq_trt.quantize.allocate import REASON

        chosen = Allocation.load(self.allocation.path)
        skip = (*skip, *chosen.kept)
        recipe, before = model.spec.recipe(model.module, skip), {k.name for k in model.recipe.kept}
        kept = tuple(k if k.name in before else replace(k, reason=REASON) for k in recipe.kept)
        return Target(replace(recipe, kept=kept), skip, chosen.ranks, {"allocation": to_builtins(chosen.summary())})

    def quantize(
        self,
        model: OpenModel,
        goal: Target,
        calibration: Calibration,
        device: torch.device,
        progress: Progress,
        crew: Alone,
        layers_done: Callable[[], None] = lambda: None,
    ) -> list[Node]:
        """Write svdq.safetensors and return its nodes; a rank other than 0 quantizes its share and returns []."""
        from svdq_trt.contract.formats import FORMATS
        from svdq_trt.quantize.preset import get_preset
        from svdq_trt.quantize.run import quantize_model

        return quantize_model(
            model.module,
            model.spec,
            goal.recipe.groups,
            calibration,
            FORMATS[self.format],
            goal.rank,
            get_preset(self.preset),
            self.out,
            self.key,
            progress,
            skip=goal.skip,
            read=model.read,
            notes=goal.notes,
            device=device,
            crew=crew,
            layers_done=layers_done,
        )


@dataclass(frozen=True)
class Target:
    """The nodes to quantize, and their ranks.

    Attributes:
        recipe: groups and kept layers. skip: patterns that give these groups.
        rank: R of all nodes, or of each by name. notes: for the artifact's metadata.
    """

    recipe: Recipe
    skip: tuple[str, ...]
    rank: int | Mapping[str, int]
    notes: Mapping[str, Any]


def notes(preset: str, device: torch.device) -> tuple[str, ...]:
    """Notes for the user on how the model was quantized."""
    from svdq_trt.quantize.gptq import rounding_on
    from svdq_trt.quantize.preset import get_preset

    if device.type == "cpu" or not get_preset(preset).gptq:
        return ()
    note = rounding_on(device).note
    return (note,) if note else ()
