"""A prompt to pictures in a pipeline of engines, and the time of each part."""

from __future__ import annotations

import functools
import inspect
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from svdq_trt.base.errors import ShapeError, UnsupportedError, UsageError
from svdq_trt.models.autoencoder_config import autoencoder_scale
from svdq_trt.models.denoiser import Denoiser
from svdq_trt.models.part_modules import Autoencoder, TextEncoder
from svdq_trt.models.pipelines import KINDS, PipelineKind, call_arguments, from_picture, read_picture, text_arguments
from svdq_trt.models.spec import Axis
from svdq_trt.models.stand_in import Runs, StandIn
from svdq_trt.runtime.request import Request

if TYPE_CHECKING:
    from PIL.Image import Image

#: names of the parts in Times
_NAMES: dict[type[StandIn], str] = {TextEncoder: "text", Denoiser: "steps", Autoencoder: "VAE"}


@dataclass
class Times:
    """Seconds of each part of a picture, on a GPU the GPU's own, and how often its engines ran.

    Attributes:
        seconds, runs: by part. steps: of denoising; a pipeline with guidance may run its denoiser twice in each.
        skipped: runs of the denoiser that a step cache left out.
    """

    seconds: dict[str, float] = field(default_factory=dict)
    runs: dict[str, int] = field(default_factory=dict)
    steps: int = 0
    skipped: int = 0


def generate(pipe: Any, *requests: Request) -> tuple[list[Image], Times]:
    """Run a pipeline of `loading.load` once; diffusers shows its steps on stderr.

    Picture i of a request is that of a run with batch 1 and seed + i.

    Args:
        requests: equal in what is `common`.

    Returns:
        the pictures of the first request, of the second, ...; the times of "text", "steps" and "VAE".

    Raises:
        ArtifactError: a picture that cannot be read. Errors of `check`.
        UsageError: a strength by which no step is left.
        ShapeError: more pictures than the engines take at once.
    """
    for request in requests:
        check(pipe, request)
    first = requests[0]
    kind, denoiser = _denoiser(pipe)
    pipe = pipe if first.image is None else from_picture(pipe, masked=first.mask is not None)
    asked = _arguments(pipe, denoiser, first)
    # Together, every picture is a prompt of its own: SanaPipeline mixes up masks where several prompts have several.
    each = first.batch if len(requests) > 1 else 1
    texts = [request for request in requests for _ in range(each)]
    asked["num_images_per_prompt"] = first.batch // each
    if first.negative is not None:
        asked["negative_prompt"] = [request.negative for request in texts]
    elif "negative_prompt" in asked:  # the model's own
        asked["negative_prompt"] = [asked["negative_prompt"]] * len(texts)
    seeds = [request.seed + i for request in requests for i in range(request.batch)]
    asked["generator"] = [torch.Generator().manual_seed(seed) for seed in seeds]
    asked |= text_arguments(pipe, kind, _sizes(denoiser, 2)["tokens"])
    times, skipped = Times(), getattr(denoiser.runner, "skipped", 0)
    denoiser.restart()  # the last picture may have ended before its time
    modules = [module for module in pipe.components.values() if isinstance(module, StandIn)]
    sessions = [module.runner for module in modules]
    clocked = [_Clocked(module.runner, _part(module), times) for module in modules]
    try:
        for module, runner in zip(modules, clocked, strict=True):
            module.runner = runner
        pipe.scheduler.step = _counted(pipe.scheduler.step, times)
        images = pipe(prompt=[request.prompt for request in texts], **asked).images
        times.skipped = getattr(denoiser.runner, "skipped", 0) - skipped
        for runner in clocked:
            runner.add_seconds()
        return images, times
    except ValueError as error:  # of diffusers, which says it in several ways
        if first.image is not None and "steps" not in times.runs and (got := _no_step(pipe, asked)):
            fix = "Raise strength or steps."
            raise UsageError("strength", got, "one step at least", fix) from error
        raise
    finally:
        vars(pipe.scheduler).pop("step", None)
        for module, session in zip(modules, sessions, strict=True):
            module.runner = session


def check(pipe: Any, request: Request) -> None:
    """Check a request against a pipeline before anything runs.

    Raises:
        UnsupportedError: a negative prompt for a pipeline in which it has no effect.
        UsageError: more steps than the scheduler has. ShapeError: a size that the denoiser's engine does not take, a
            text of which every text encoder would drop the end.
    """
    kind, denoiser = _denoiser(pipe)
    if request.negative is not None and not kind.negative:
        raise UnsupportedError("negative", f"given to a {kind.class_name}", "no negative prompt: it has no effect")
    most = pipe.scheduler.config.get("num_train_timesteps", 1000)
    if request.steps is not None and request.steps > most:
        raise UsageError("steps", str(request.steps), f"at most {most}")
    size = _size(denoiser, request)
    _check_size(denoiser, *size)
    _check_sides(pipe.vae, *size)
    for name, text in (("prompt", request.prompt), ("negative", request.negative)):
        _check_text(pipe, name, text or "")


def rows(pipe: Any, request: Request) -> int:
    """Rows of the denoiser's batch that a picture takes: two with guidance, where the pipeline gives both at once."""
    kind, denoiser = _denoiser(pipe)
    default = inspect.signature(pipe.__call__).parameters[denoiser.spec.guidance].default
    own = denoiser.spec.asked.get(denoiser.spec.guidance, default)
    guidance = own if request.guidance is None else request.guidance
    return 1 + (kind.doubled_above is not None and guidance > kind.doubled_above)


def _part(module: StandIn) -> str:
    """Its name in Times."""
    return next(name for cls, name in _NAMES.items() if isinstance(module, cls))


def _denoiser(pipe: Any) -> tuple[PipelineKind, Denoiser]:
    kind = KINDS[type(pipe).__name__]
    return kind, getattr(pipe, kind.denoiser)


def _arguments(pipe: Any, denoiser: Denoiser, request: Request) -> dict[str, Any]:
    """The keywords of the pipeline's call that are equal in all requests."""
    height, width = _size(denoiser, request)
    frames = _sizes(denoiser, 1)["frames"]
    asked = call_arguments(pipe, denoiser.spec, height, width, frames, request.steps, request.guidance)
    if request.image is not None:
        asked["image"] = read_picture(request.image, (width, height))
    if request.mask is not None:
        asked["mask_image"] = read_picture(request.mask, (width, height))
    if request.strength is not None:
        asked["strength"] = request.strength
    return asked


def _no_step(pipe: Any, asked: Mapping[str, Any]) -> str:
    """Which share of a picture's steps is less than one, as some pipelines then run none; "" if it is not."""
    parameters = inspect.signature(pipe.__call__).parameters
    strength, steps = (asked.get(n, parameters[n].default) for n in ("strength", "num_inference_steps"))
    return f"{strength:g} of {steps} steps" if strength * steps < 1 else ""


def _sizes(denoiser: Denoiser, index: int) -> dict[str, int]:
    """What the engine was built for: least (0), best (1) and most (2)."""
    runner: Any = denoiser.runner
    return denoiser.spec.built_sizes(runner.manifest, index)


def _size(denoiser: Denoiser, request: Request) -> tuple[int, int]:
    """Height and width in pixels."""
    own = _sizes(denoiser, 1)
    height, width = request.height, request.width
    return own["height"] if height is None else height, own["width"] if width is None else width


def _text_tokens(kind: PipelineKind, denoiser: Denoiser) -> int:
    """Those of encoders other than CLIP, of which the denoiser gets as many as it was built for."""
    return _sizes(denoiser, 2)["tokens"] - kind.clip_tokens


def _check_size(denoiser: Denoiser, height: int, width: int) -> None:
    sizes = {"height": height, "width": width}
    denoiser.spec.check_sizes(sizes)
    runner: Any = denoiser.runner
    profiles = {profile.name: profile for profile in runner.inputs}
    for io in denoiser.spec.inputs:
        profile = profiles[io.name]
        for axis, low, high in zip(io.dims, profile.min, profile.max, strict=True):
            if not isinstance(axis, Axis) or axis.plus or not sizes.keys() >= {*axis.symbols}:
                continue
            if not low <= axis.size(sizes) <= high:
                got = " x ".join(str(sizes[symbol]) for symbol in axis.symbols)
                fix = f"Build the engine with a wider --{' or --'.join(axis.symbols)}."
                raise ShapeError(" x ".join(axis.symbols), got, f"{axis.value(low)} to {axis.value(high)}", fix)


def _check_sides(vae: Autoencoder, height: int, width: int) -> None:
    """Raise ShapeError for a side below what decodes; denoisers of tokens in a row know of a picture its area alone."""
    runner: Any = vae.runner
    least = next(profile.min[2:] for profile in runner.inputs if profile.name == "latent")
    for name, size, latents in zip(("height", "width"), (height, width), least, strict=True):
        low = latents * autoencoder_scale(vae.config)
        if size < low:
            raise ShapeError(name, str(size), f"at least {low}", f"Build the engine with a wider --{name}.")


def _check_text(pipe: Any, name: str, text: str) -> None:
    """Raise ShapeError for a text of which no text encoder reads all; FLUX.1's CLIP need not, where its T5 does."""
    kind, denoiser = _denoiser(pipe)
    found = []
    for tokenizer in (part for key, part in pipe.components.items() if key.startswith("tokenizer") and part):
        is_clip = type(tokenizer).__name__.startswith("CLIP")
        most = tokenizer.model_max_length if is_clip else _text_tokens(kind, denoiser)
        found.append((most, kind.text_tokens(type(pipe), tokenizer, text, name == "negative")))
    if all(count > most for most, count in found):
        most, count = max(found)
        raise ShapeError(name, f"{count} tokens", f"at most {most}")


def _counted(step: Callable[..., Any], times: Times) -> Callable[..., Any]:
    """A scheduler's method `step`, whose calls are counted."""

    @functools.wraps(step)
    def counted(*args: Any, **kwargs: Any) -> Any:
        times.steps += 1
        return step(*args, **kwargs)

    return counted


class _Clocked:
    """A runner whose runs are timed; on a GPU by events, so that the host prepares the next run meanwhile."""

    def __init__(self, runner: Runs, part: str, times: Times) -> None:
        self._runner, self._part, self._times = runner, part, times
        self._spans: list[tuple[Any, Any]] = []
        self.inputs = runner.inputs
        self.device = getattr(runner, "device", "cpu")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runner, name)

    def run(self, inputs: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        """Run it."""
        begin = self._moment()
        outputs = self._runner.run(inputs, **more)
        self._spans.append((begin, self._moment()))
        self._times.runs[self._part] = self._times.runs.get(self._part, 0) + 1
        self._times.seconds.setdefault(self._part, 0.0)  # in the order of their first runs
        return outputs

    def add_seconds(self) -> None:
        """Wait for all runs, and add their seconds to those of the part."""
        for begin, end in self._spans:
            if self.device == "cpu":
                self._times.seconds[self._part] += end - begin
            else:
                end.synchronize()
                self._times.seconds[self._part] += begin.elapsed_time(end) / 1000

    def _moment(self) -> Any:
        """Now, in seconds; on a GPU an event, behind all work so far."""
        if self.device == "cpu":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event
