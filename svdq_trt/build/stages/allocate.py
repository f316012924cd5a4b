"""Stage: a rank for every node, for ``--rank auto`` -> allocation.json."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from svdq_trt.artifact.manifest import AllocationEntry
from svdq_trt.base.errors import UsageError
from svdq_trt.base.progress import Progress
from svdq_trt.build.stage import File, Result, Stage
from svdq_trt.build.stages.calibrate import Calibrate

if TYPE_CHECKING:
    from svdq_trt.build.config import RankAuto
    from svdq_trt.build.work import Work

FILE = "allocation.json"


@dataclass(frozen=True)
class Allocated(Result):
    """The choice, in figures."""

    allocation: AllocationEntry


@dataclass(frozen=True)
class Allocate(Stage[Allocated]):
    """Calibrate as the quantizer does, measure each node's curve unless that is done, choose.

    Attributes:
        budget_bytes, target_sqnr: what was asked for; one of them is None.
        sensitivity: file of ``svdq-trt sensitivity``.
    """

    name = "allocate"
    result = Allocated

    calibrate: Calibrate
    format: str
    budget_bytes: int | None
    target_sqnr: float | None
    sensitivity: File | None

    @classmethod
    def of(cls, work: Work, auto: RankAuto, fmt: str, calibrate: Calibrate) -> Allocate:
        """The stage for a build's options."""
        out = work.quantized_folder(fmt) / FILE
        return cls(calibrate, fmt, auto.budget_bytes, auto.target_sqnr, work.sensitivity, out=out)

    @property
    def label(self) -> str:
        """Label shown while it runs."""
        return f"allocate  {self.format} ranks"

    @property
    def curves(self) -> Path:
        """Path of the journal of the nodes' curves, which serve every budget."""
        return self.folder / "curves.jsonl"

    def imports(self) -> None:
        """Import the quantizer and the model's class."""
        import svdq_trt.quantize.allocate  # noqa: F401

        self.calibrate.weights.imports()

    def run(self, progress: Progress) -> Allocated:
        """Choose the ranks and write allocation.json."""
        from svdq_trt.artifact.sensitivity import Sensitivity
        from svdq_trt.base.device import all_threads, torch_device
        from svdq_trt.base.journal import Journal
        from svdq_trt.base.ranks import local_rank
        from svdq_trt.contract.formats import FORMATS
        from svdq_trt.quantize.allocate import allocate, measure_curves

        path = None if self.sensitivity is None else self.sensitivity.path
        scan = None if path is None else Sensitivity.load(path)  # before any work
        name = self.calibrate.weights.model
        if scan is not None and scan.model != name:
            raise UsageError("--sensitivity", f"{path}, a scan of {scan.model}", f"one of {name}")
        device = torch_device(self.calibrate.device, local_rank())
        model = self.calibrate.open(progress)
        calibration = self.calibrate.calibration(model, device, progress)
        whatever = replace(self, budget_bytes=None, target_sqnr=None, sensitivity=None)
        journal = Journal(self.curves, whatever.key)
        with all_threads():
            curves = measure_curves(
                model.module,
                model.recipe.groups,
                calibration,
                FORMATS[self.format],
                model.spec.torch_dtype,
                journal,
                progress,
                model.read,
                device,
            )
        chosen = allocate(curves, self.budget_bytes, self.target_sqnr, scan, path.name if path else "")
        chosen.save(self.out)
        return Allocated(chosen.summary())
