"""Stage: a part of a pipeline beside its denoiser -> model.onnx (+ data), in 16 bit."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svdq_trt.base.progress import Progress
from svdq_trt.build.stage import UNKEYED, Result, Stage
from svdq_trt.build.stages.export import FILE

if TYPE_CHECKING:
    from svdq_trt.models.parts import Part


@dataclass(frozen=True)
class PartExported(Result):
    """An ONNX file: the bytes of its data, and its linears and convolutions."""

    data_bytes: int
    layers: tuple[str, ...]


@dataclass(frozen=True)
class ExportPart(Stage[PartExported]):
    """A text encoder or half an autoencoder as ONNX, as its module is.

    Attributes:
        component, role, class_name, config, act_dtype, tokens, states: see models.parts.Part.
        digest: of the weights, see checkpoint.parts.identify_part. ranges: see Export.
        pipeline: the folder they are in. variant: see checkpoint.locate.locate_component.
        random_weights: the seed of made-up weights.
    """

    name = "export"
    result = PartExported
    loads = ("transformers", "diffusers")

    component: str
    role: str
    class_name: str
    config: dict[str, Any]
    act_dtype: str
    tokens: int
    states: tuple[int, ...]
    digest: str
    ranges: dict[str, tuple[int, int]]
    pipeline: Path = field(kw_only=True, metadata=UNKEYED)
    variant: str = field(kw_only=True, metadata=UNKEYED)
    random_weights: int | None = field(kw_only=True, metadata=UNKEYED)

    @property
    def part(self) -> Part:
        """The part."""
        from svdq_trt.models.parts import Part

        return Part(self.component, self.role, self.class_name, self.config, self.act_dtype, self.tokens, self.states)

    @property
    def label(self) -> str:
        """Label shown while it runs."""
        return f"export    {self.part.name} ONNX"

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the graph and its data."""
        return (FILE, f"{FILE}.data")

    def imports(self) -> None:
        """Import the exporter and the part's class."""
        from svdq_trt.build.graph import import_exporter

        import_exporter()
        _ = self.part.module_class

    def run(self, progress: Progress) -> PartExported:
        """Load the module and export it."""
        from svdq_trt.build.graph import export_model
        from svdq_trt.checkpoint.parts import load_part
        from svdq_trt.models.recipe import weight_layers

        progress(0, 1, f"loading {self.part.component}")
        module = load_part(self.part, self.pipeline, self.variant, self.random_weights)
        layers = tuple(weight_layers(module))
        info = export_model(module, self.part, self.ranges, self.out, progress)
        return PartExported(info.data_bytes, layers)
