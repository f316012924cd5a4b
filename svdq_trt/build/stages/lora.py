"""Stage: svdq.safetensors + LoRA files -> svdq.safetensors with the LoRAs in it; nothing is quantized again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from svdq_trt.artifact.manifest import LoraEntry
from svdq_trt.base.progress import Progress
from svdq_trt.build.stage import File, Result, Stage
from svdq_trt.build.stages.weights import LoraAt, Weights

if TYPE_CHECKING:
    from svdq_trt.build.work import Work
    from svdq_trt.lora.apply import LoraRequest


@dataclass(frozen=True)
class LorasApplied(Result):
    """The changes by each file, and the size of the result."""

    loras: tuple[LoraEntry, ...]
    quantized_weight_bytes: int


@dataclass(frozen=True)
class ApplyLoras(Stage[LorasApplied]):
    """Put LoRAs into the low-rank branches. allow_partial: leave out what does not fit, instead of refusing a file."""

    name = "lora"
    result = LorasApplied

    model: str
    artifact: File
    loras: tuple[LoraAt, ...]
    allow_partial: bool
    format: str
    weights: Weights | None  # of the model; None where no LoRA is made of them

    @classmethod
    def of(cls, work: Work, fmt: str, artifact: File, folder: Path) -> ApplyLoras:
        """The stage for one format of a build; `folder` is that of its graph."""
        partial = work.config.allow_partial
        weights = work.weights if work.loras_need_weights else None
        return cls(work.spec.source, artifact, work.loras, partial, fmt, weights, out=folder / artifact.path.name)

    @property
    def label(self) -> str:
        """Label shown while it runs."""
        count = len(self.loras)
        return f"lora      {self.format} {count} file{'s' if count > 1 else ''}"

    def run(self, progress: Progress) -> LorasApplied:
        """Write the artifact with the LoRAs in it."""
        from svdq_trt.checkpoint import open_weights
        from svdq_trt.lora.apply import apply_loras
        from svdq_trt.models import get_model

        spec, loras, given = get_model(self.model), requests(self.loras), self.weights
        weights = None if given is None else open_weights(spec, given.checkpoint, given.random_weights)
        entries = apply_loras(self.artifact.path, loras, spec, self.allow_partial, self.out, progress, weights)
        return LorasApplied(tuple(entries), self.out.stat().st_size)


def requests(loras: Sequence[LoraAt]) -> list[LoraRequest]:
    """The LoRA files as svdq_trt.lora takes them."""
    from svdq_trt.lora.apply import LoraRequest

    return [LoraRequest(lora.file.path, lora.strength) for lora in loras]
