"""Stages: run one ONNX file in ONNX Runtime on the check's inputs; the only ones that hold a session."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Self

from svdq_trt.base.progress import Progress
from svdq_trt.build.stage import UNKEYED, File, Result, Stage

if TYPE_CHECKING:
    from svdq_trt.build.work import Work

SEED = 20_241_107  # of the check's inputs; differs from every calibration seed


@dataclass(frozen=True)
class Ran(Result):
    """Duration of the run itself."""

    seconds: float


@dataclass(frozen=True)
class RunOnnx(Stage[Ran]):
    """Run `onnx` and save its outputs as .npz.

    Attributes:
        sizes: symbol (batch, height, width, tokens) -> its value. seed: of the inputs.
        slots: SLOTS_FILE of a graph that has LoRA slots, which stay empty.
    """

    result = Ran
    loads = ("onnxruntime", "onnxruntime-gpu")  # through Polygraphy

    model: str
    onnx: File
    sizes: dict[str, int]
    seed: int
    what: str
    slots: Path | None = field(default=None, kw_only=True, metadata=UNKEYED)

    @classmethod
    def of(cls, work: Work, what: str, onnx: File, out: Path, slots: Path | None = None) -> Self:
        """The stage for a build's check, at the smallest profile shape."""
        return cls(work.spec.name, onnx, work.check_sizes(), SEED, what, slots=slots, out=out)

    @property
    def label(self) -> str:
        """Label shown while it runs."""
        return f"check     {self.what} run"

    def run(self, progress: Progress) -> Ran:
        """Run the graph on seeded inputs and save its outputs."""
        import torch

        from svdq_export import write_float32_twin
        from svdq_trt.evaluate.onnx_run import run_onnx
        from svdq_trt.models import get_model
        from svdq_trt.runtime.lora import LoraSlots

        spec, onnx = get_model(self.model), self.onnx.path
        example = spec.example_inputs(**self.sizes, seed=self.seed)  # type: ignore[arg-type]
        inputs = {io.name: tensor for io, tensor in zip(spec.inputs, example, strict=True)}
        progress(0, 1, f"{onnx.name} in ONNX Runtime")
        if self.slots is not None:
            inputs |= LoraSlots(self.slots).views
        if spec.torch_dtype == torch.bfloat16:  # ONNX Runtime's CPU has no bf16 arithmetic: same graph and data, in f32
            onnx, inputs = write_float32_twin(onnx), {name: t.float() for name, t in inputs.items()}
        feed = {name: tensor.numpy() for name, tensor in inputs.items()}
        try:
            return Ran(run_onnx(onnx, feed, self.out))
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
