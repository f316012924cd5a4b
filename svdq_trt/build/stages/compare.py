"""Stage: outputs of both ONNX files -> accuracy figures and the plot."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from svdq_trt.artifact.manifest import OutputEntry
from svdq_trt.base.progress import Progress
from svdq_trt.build.stage import UNKEYED, File, Result, Stage
from svdq_trt.build.stages.quantize import FILE as ARTIFACT

if TYPE_CHECKING:
    from svdq_trt.build.work import Work

FILE = "accuracy.png"


@dataclass(frozen=True)
class Compared(Result):
    """Accuracy of each output."""

    outputs: tuple[OutputEntry, ...]


@dataclass(frozen=True)
class Compare(Stage[Compared]):
    """Figures and a picture of the quantized outputs (.npz) against the reference's; `artifact` has the nodes."""

    name = "compare"
    result = Compared

    reference: File
    quantized: File
    format: str
    title: str
    artifact: Path = field(kw_only=True, metadata=UNKEYED)

    @classmethod
    def of(cls, work: Work, fmt: str, folder: Path, reference: File, quantized: File) -> Compare:
        """The comparison of one format of a build, whose artifact is in `folder`."""
        title = f"{work.spec.name} {fmt} rank {work.config.rank_text}"
        return cls(reference, quantized, fmt, title, artifact=folder / ARTIFACT, out=folder / FILE)

    @property
    def label(self) -> str:
        """Label shown while it runs."""
        return f"check     {self.format} compare"

    def imports(self) -> None:
        """Import what draws."""
        import svdq_trt.evaluate.plot  # noqa: F401

    def run(self, progress: Progress) -> Compared:
        """Compare the outputs and draw the plot."""
        from svdq_trt.artifact import svdq_file
        from svdq_trt.evaluate.metrics import compare
        from svdq_trt.evaluate.plot import plot_accuracy

        progress(0, 1, "comparing")
        accuracy = compare(self.reference.path, self.quantized.path)
        nodes = svdq_file.read_nodes(self.artifact)
        plot_accuracy(nodes, accuracy, self.reference.path, self.quantized.path, self.title, self.out)
        return Compared(tuple(accuracy))
