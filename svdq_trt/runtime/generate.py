"""A prompt to pictures in a pipeline of engines, and the time of each part."""

from __future__ import annotations

import inspect
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from svdq_trt.base.errors import UnsupportedError, UsageError
from svdq_trt.models.denoiser import Denoiser
from svdq_trt.models.part_modules import Autoencoder, TextEncoder
from svdq_trt.models.pipelines import KINDS, PipelineKind, call_arguments, from_picture, read_picture
from svdq_trt.models.stand_in import Runs, StandIn

if TYPE_CHECKING:
    from PIL.Image import Image

#: names of the parts in Times
_NAMES: dict[type[StandIn], str] = {TextEncoder: "text", Denoiser: "steps", Autoencoder: "VAE"}


@dataclass(frozen=True)
class Request:
    """What is asked for; None is the pipeline's own default, of sizes what the denoiser's engine is tuned for.

    Attributes:
        prompt, negative: the text, and what to keep away from. steps: of denoising. guidance: its scale.
        seed: of the first picture's noise; the next one's is one more. width, height: pixels. count: of pictures.
        image: file of a picture to start from. strength: share of the steps by which it is changed.
    """

    prompt: str
    negative: str | None = None
    steps: int | None = None
    guidance: float | None = None
    seed: int = 0
    width: int | None = None
    height: int | None = None
    count: int = 1
    image: Path | None = None
    strength: float | None = None

    def __post_init__(self) -> None:
        for option, value in (("--steps", self.steps), ("--batch", self.count)):
            if value is not None and value < 1:
                raise UsageError(option, str(value), "at least 1")
        if not 0 <= self.seed < 1 << 62:
            raise UsageError("--seed", str(self.seed), "0 to 2^62")
        if self.guidance is not None and not math.isfinite(self.guidance):
            raise UsageError("--guidance", str(self.guidance), "a finite number")
        if self.strength is not None and self.image is None:
            raise UsageError("--strength", "given alone", "--image with it")
        if self.strength is not None and not 0 < self.strength <= 1:
            raise UsageError("--strength", str(self.strength), "above 0, at most 1")


@dataclass
class Times:
    """Seconds of each part of a picture, and how often its engines ran."""

    seconds: dict[str, float] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)

    def add(self, part: str, seconds: float) -> None:
        """Count one run."""
        self.seconds[part] = self.seconds.get(part, 0.0) + seconds
        self.runs[part] = self.runs.get(part, 0) + 1


def generate(pipe: Any, request: Request) -> tuple[list[Image], Times]:
    """Run a pipeline of `loading.load`; diffusers shows its steps on stderr.

    Picture i is that of a run with count 1 and seed + i.

    Returns:
        the pictures; the times of "text", "steps" and "VAE".

    Raises:
        UnsupportedError: a negative prompt for a pipeline in which it has no effect, a picture for one that takes none.
        ArtifactError: a picture that cannot be read.
        ShapeError: a size, or a number of pictures, that the engines do not take.
    """
    kind = KINDS[type(pipe).__name__]
    pipe = pipe if request.image is None else from_picture(pipe)
    asked = _arguments(pipe, kind, request)
    times = Times()
    modules = [module for module in pipe.components.values() if isinstance(module, StandIn)]
    sessions = [module.runner for module in modules]
    try:
        for module in modules:
            module.runner = _Clocked(module.runner, _NAMES[type(module)], times)
        return pipe(request.prompt, **asked).images, times
    finally:
        for module, session in zip(modules, sessions, strict=True):
            module.runner = session


def _arguments(pipe: Any, kind: PipelineKind, request: Request) -> dict[str, Any]:
    """The keywords of the pipeline's call."""
    if request.negative is not None and not kind.negative:
        raise UnsupportedError("--negative", f"given to a {kind.class_name}", "no negative prompt: it has no effect")
    denoiser = getattr(pipe, kind.denoiser)
    spec, manifest = denoiser.spec, denoiser.runner.manifest
    own = spec.built_sizes(manifest, 1)
    height, width = request.height or own["height"], request.width or own["width"]
    asked = call_arguments(pipe, spec, height, width, own["frames"], request.steps, request.guidance)
    if request.negative is not None:
        asked["negative_prompt"] = request.negative
    if request.image is not None:
        asked["image"] = read_picture(request.image, (width, height))
    if request.strength is not None:
        asked["strength"] = request.strength
    asked["num_images_per_prompt"] = request.count
    asked["generator"] = [torch.Generator().manual_seed(request.seed + i) for i in range(request.count)]
    if "max_sequence_length" in inspect.signature(pipe.__call__).parameters:
        # T5's, so that the denoiser gets the tokens that it was built for
        asked["max_sequence_length"] = spec.built_sizes(manifest, 2)["tokens"] - kind.clip_tokens
    return asked


class _Clocked:
    """A runner whose runs are timed, to the end of their work on the GPU."""

    def __init__(self, runner: Runs, part: str, times: Times) -> None:
        self._runner, self._part, self._times = runner, part, times
        self.inputs = runner.inputs
        self.device = getattr(runner, "device", "cpu")

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run it."""
        self._settle()
        started = time.perf_counter()
        outputs = self._runner.run(inputs)
        self._settle()
        self._times.add(self._part, time.perf_counter() - started)
        return outputs

    def _settle(self) -> None:
        if self.device != "cpu":
            torch.cuda.synchronize(self.device)
