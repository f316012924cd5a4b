"""The options of a build as its manifest records them: those that readers of an engine folder need."""

from __future__ import annotations

from typing import Annotated

from svdq_trt.artifact.entry import Entry, says

_SIZE = {"ge": 1, "le": 1 << 20}


class SizeOption(Entry, frozen=True):
    """The range of a size, such as ``--batch``."""

    min: Annotated[int, says("the smallest", **_SIZE)]
    opt: Annotated[int, says("what TensorRT tunes for", **_SIZE)]
    max: Annotated[int, says("the largest", **_SIZE)]


class SamplingOption(Entry, frozen=True):
    """``--calibration-prompts`` and what goes with it."""

    pipeline: Annotated[str, says("the pipeline's folder")]
    samples: Annotated[int, says("denoising steps that were recorded")]


class Options(Entry, frozen=True, kw_only=True):
    """The manifest's `config`, typed; every option may be absent."""

    checkpoint: Annotated[str | None, says("--checkpoint")] = None
    random_weights: Annotated[int | None, says("--random-weights")] = None
    quantized: Annotated[str | None, says("--quantized")] = None
    preset: Annotated[str, says("--preset")] = "not recorded"
    calibration: Annotated[str | None, says("--calibration")] = None
    sampling: Annotated[SamplingOption | None, says("--calibration-prompts")] = None
    weight_streaming: Annotated[bool, says("--weight-streaming")] = False
    skip: Annotated[tuple[str, ...], says("--skip")] = ()
    batch: Annotated[SizeOption | None, says("--batch")] = None
    height: Annotated[SizeOption | None, says("--height")] = None
    width: Annotated[SizeOption | None, says("--width")] = None
    tokens: Annotated[SizeOption | None, says("--tokens")] = None
    tokens2: Annotated[SizeOption | None, says("--tokens2")] = None
    frames: Annotated[SizeOption | None, says("--frames")] = None
    images: Annotated[SizeOption | None, says("--images")] = None

    @property
    def weights(self) -> str:
        """Where the weights came from, for people."""
        if self.quantized or self.checkpoint:
            return str(self.quantized or self.checkpoint)
        return "the model's hub id" if self.random_weights is None else f"random weights, seed {self.random_weights}"

    @property
    def inputs(self) -> str:
        """What the model was calibrated on, for people."""
        if self.sampling is not None:
            return f"{self.sampling.samples} steps recorded in {self.sampling.pipeline}"
        return self.calibration or "synthetic inputs"
