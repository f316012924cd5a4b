"""Stages: run one ONNX file in ONNX Runtime on the check's inputs; the only ones that hold a session."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from svdq_trt.base.progress import Progress
from svdq_trt.build.stage import UNKEYED, File, Result, Stage

if TYPE_CHECKING:
    from svdq_trt.build.work import Work

SEED = 20_241_107  # of the check's first synthetic input; differs from every calibration seed


@dataclass(frozen=True)
class Ran(Result):
    """Duration of the runs themselves, and what they ran on: see CheckInputs."""

    seconds: float
    inputs: int
    sizes: dict[str, int]
    recorded: bool


@dataclass(frozen=True)
class RunOnnx(Stage[Ran]):
    """Run `onnx` and save its outputs as .npz.

    Attributes:
        ranges: symbol (batch, height, ...) -> (smallest, largest). seed: of the first synthetic input.
        recorded: calibration inputs of a pipeline or of the user, or None.
        slots: SLOTS_FILE of a graph that has LoRA slots, which stay empty.
    """

    result = Ran
    loads = ("onnxruntime", "onnxruntime-gpu")  # through Polygraphy

    model: str
    onnx: File
    ranges: dict[str, tuple[int, int]]
    seed: int
    recorded: File | None
    what: str
    slots: Path | None = field(default=None, kw_only=True, metadata=UNKEYED)

    @classmethod
    def of(cls, work: Work, what: str, onnx: File, recorded: File | None, out: Path, slots: Path | None = None) -> Self:
        """The stage for a build's check."""
        return cls(work.spec.source, onnx, work.ranges(), SEED, recorded, what, slots=slots, out=out)

    @property
    def label(self) -> str:
        """Label shown while it runs."""
        return f"check     {self.what} run"

    def run(self, progress: Progress) -> Ran:
        """Run the graph on the check's inputs and save its outputs."""
        import torch

        from svdq_export.twin import write_float32_twin
        from svdq_trt.evaluate.check_inputs import check_inputs
        from svdq_trt.evaluate.onnx_run import run_onnx
        from svdq_trt.models import get_model
        from svdq_trt.runtime.lora import LoraSlots

        spec, onnx = get_model(self.model), self.onnx.path
        found = check_inputs(spec, self.ranges, self.seed, None if self.recorded is None else self.recorded.path)
        progress(0, 1, f"{onnx.name} in ONNX Runtime")
        slots = {} if self.slots is None else LoraSlots(self.slots).views
        feeds = [feed | slots for feed in found.feeds]
        if spec.torch_dtype == torch.bfloat16:  # ONNX Runtime's CPU has no bf16 arithmetic: same graph and data, in f32
            slots = {name: t.float() for name, t in slots.items()}
            onnx = write_float32_twin(onnx)
            feeds = [{n: t.float() if t.is_floating_point() else t for n, t in f.items()} | slots for f in found.feeds]
        try:
            seconds = run_onnx(onnx, [{name: t.numpy() for name, t in feed.items()} for feed in feeds], self.out)
            notes = (found.note,) if found.note else ()
            return Ran(seconds, len(feeds), found.sizes, found.recorded, notes=notes)
        finally:
            if onnx != self.onnx.path:
                onnx.unlink()


@dataclass(frozen=True)
class RunReference(RunOnnx):
    """The run of the 16-bit model."""

    name = "reference_run"


@dataclass(frozen=True)
class RunQuantized(RunOnnx):
    """The run of the quantized model."""

    name = "check_run"
