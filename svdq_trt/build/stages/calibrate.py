"""Step: a model's weights and inputs -> calib.safetensors. It runs inside the stages that need it."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.progress import Progress
from svdq_trt.build import freshness
from svdq_trt.build.stage import UNKEYED, File, Step
from svdq_trt.build.stages.weights import Weights

if TYPE_CHECKING:
    import torch

    from svdq_trt.artifact.calibration import Calibration
    from svdq_trt.build.model_source import OpenModel
    from svdq_trt.build.work import Work

FILE = "calib.safetensors"


@dataclass(frozen=True)
class Calibrate(Step):
    """Calibration of a model: statistics and samples of each node's input.

    Attributes:
        inputs: a file of model inputs; None: synthetic ones. skip: name patterns of linears to leave alone.
        device: "cpu" or "cuda". force: calibrate even where the result is fresh.
    """

    name = "calibrate"

    weights: Weights
    inputs: File | None
    skip: tuple[str, ...]
    device: str
    force: bool = field(default=False, kw_only=True, metadata=UNKEYED)

    @classmethod
    def of(cls, work: Work, inputs: File | None, force: bool) -> Calibrate:
        """The step for a build's options."""
        return cls(work.weights, inputs, work.config.skip, work.device, force=force, out=work.shared / FILE)

    def open(self, progress: Progress, stream: bool = False) -> OpenModel:
        """Open the model to calibrate and quantize, see model_source.open_model."""
        from svdq_trt.build.model_source import open_model

        return open_model(self.weights, self.skip, progress, stream)

    def calibration(self, model: OpenModel, device: torch.device, progress: Progress) -> Calibration:
        """Return the calibration, which is made unless it is fresh."""
        from svdq_trt.base.device import all_threads
        from svdq_trt.calibrate import collect

        if not self.force and freshness.lookup(self.folder, self.name, self.key) is not None:
            with suppress(ArtifactError):  # damaged after all: made again
                return self.finished(model)
        with all_threads():
            calibration = collect(
                model.module,
                model.spec,
                model.recipe.groups,
                data=None if self.inputs is None else self.inputs.path,
                read=model.read,
                device=device,
                progress=progress,
            )
        calibration.save(self.out)
        # Recorded at once: a build that is killed while it quantizes need not calibrate again.
        freshness.store(self.folder, self.name, self.key, self.files, {})
        return calibration

    def finished(self, model: OpenModel) -> Calibration:
        """Load the finished calibration. Raises ArtifactError: damaged, or of other layers."""
        from svdq_trt.artifact.calibration import Calibration

        return Calibration.load(self.out, [group.node for group in model.recipe.groups])
