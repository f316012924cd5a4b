"""Stage: checkpoint -> model-fp16.onnx, the unquantized model that the check compares with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from svdq_trt.base.progress import Progress
from svdq_trt.build.stage import Stage
from svdq_trt.build.stages.export import Exported
from svdq_trt.build.stages.lora import requests
from svdq_trt.build.stages.weights import LoraAt, Weights

if TYPE_CHECKING:
    from svdq_trt.build.work import Work


@dataclass(frozen=True)
class ReferenceExport(Stage[Exported]):
    """The 16-bit model as ONNX, with the same LoRAs merged into its weights. `ranges`: see Export."""

    name = "reference_export"
    result = Exported

    weights: Weights
    ranges: dict[str, tuple[int, int]]
    loras: tuple[LoraAt, ...]
    allow_partial: bool

    @classmethod
    def of(cls, work: Work) -> ReferenceExport:
        """The stage for the model that a build is checked against."""
        partial = bool(work.loras) and work.config.allow_partial
        return cls(work.weights, work.ranges(), work.loras, partial, out=work.shared / "model-fp16.onnx")

    @property
    def label(self) -> str:
        """Label shown while it runs."""
        return "check     FP16 ONNX"

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the graph and its data."""
        return (self.out.name, f"{self.out.name}.data")

    def imports(self) -> None:
        """Import the exporter and the model's class."""
        from svdq_trt.build.graph import import_exporter

        import_exporter()
        self.weights.imports()

    def run(self, progress: Progress) -> Exported:
        """Load the 16-bit model, merge the LoRAs and export it."""
        from svdq_trt.build.graph import export_model
        from svdq_trt.checkpoint import load
        from svdq_trt.lora.apply import layer_shapes, merge_into, open_loras
        from svdq_trt.models import get_model

        spec = get_model(self.weights.model)
        module = load(spec, self.weights.checkpoint, self.weights.random_weights, progress)
        if self.loras:
            merge_into(module, open_loras(requests(self.loras), spec, layer_shapes(spec), self.allow_partial))
        return Exported.of(export_model(module, spec, self.ranges, self.out, progress))
