"""Stage: a diffusers pipeline and prompts -> inputs to calibrate on."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from svdq_trt.base.progress import Progress
from svdq_trt.build.config import Sampling
from svdq_trt.build.stage import UNKEYED, Result, Stage

if TYPE_CHECKING:
    from svdq_trt.build.work import Work

FILE = "calibration-inputs.safetensors"


@dataclass(frozen=True)
class Sampled(Result):
    """Number of recorded inputs."""

    inputs: int


@dataclass(frozen=True)
class Sample(Stage[Sampled]):
    """Run the pipeline and record its denoiser's inputs.

    Attributes:
        sampling: the pipeline, the prompts and the run; `source` identifies their contents.
        height, width: size of the images, in pixels. frames: of a video. device: "cpu" or "cuda".
    """

    name = "sample"
    result = Sampled
    loads = ("transformers",)  # the pipeline's text encoders

    model: str
    source: str
    height: int
    width: int
    frames: int
    device: str
    sampling: Sampling = field(kw_only=True, metadata=UNKEYED)

    @classmethod
    def of(cls, work: Work, sampling: Sampling) -> Sample:
        """The stage for a build's options."""
        height, width, frames = (work.sizes.profile[symbol][1] for symbol in ("height", "width", "frames"))
        out: Path = work.shared / FILE
        return cls(work.spec.source, work.sampling, height, width, frames, work.device, sampling=sampling, out=out)

    @property
    def label(self) -> str:
        """Label shown while it runs."""
        return f"sample    {self.sampling.pipeline.name}"

    def run(self, progress: Progress) -> Sampled:
        """Run the prompts and write the inputs."""
        from svdq_trt.artifact.prompts import read_prompts
        from svdq_trt.base.device import torch_device
        from svdq_trt.base.ranks import local_rank
        from svdq_trt.calibrate.sample import sample_inputs
        from svdq_trt.models import get_model

        how = self.sampling
        inputs = sample_inputs(
            get_model(self.model),
            how.pipeline,
            read_prompts(how.prompts),
            self.out,
            samples=how.samples,
            steps=how.steps,
            height=self.height,
            width=self.width,
            frames=self.frames,
            guidance=how.guidance,
            seed=how.seed,
            device=torch_device(self.device, local_rank()),
            progress=progress,
        )
        return Sampled(inputs)
