"""Calibration inputs from a real pipeline: prompts are run, and the denoiser's inputs are kept.

The file is one that ``--calibration`` reads (inputs.py). The pipeline is a diffusers folder; its own denoiser runs,
wrapped by models/denoiser.py, which turns a pipeline's calls into a model's inputs.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from svdq_trt.artifact.prompts import Prompt
from svdq_trt.artifact.tensor_file import save_tensors
from svdq_trt.base.errors import ArtifactError, SvdqError, UsageError, first_line
from svdq_trt.base.files import read_json_object
from svdq_trt.base.progress import Progress
from svdq_trt.calibrate.inputs import tensor_name
from svdq_trt.checkpoint.config_check import check_config, check_module
from svdq_trt.checkpoint.locate import locate
from svdq_trt.contract.numerics import CPU
from svdq_trt.models import ModelSpec
from svdq_trt.models.denoiser import Denoiser, component_of
from svdq_trt.models.pipelines import INDEX, call_arguments, read_picture

_KEY = "svdq.sampling"  # key in the safetensors metadata: how the inputs were made


def check_pipeline(spec: ModelSpec, folder: Path) -> None:
    """Check, without loading it, that a pipeline's denoiser is the model.

    Raises:
        ArtifactError: another model, or not the folder of a whole pipeline.
    """
    _check_index(spec, folder)
    source = locate(spec, str(folder))
    if source.config is not None:
        check_config(spec, source.config)


def check_denoiser(spec: ModelSpec, folder: Path) -> None:
    """check_pipeline for a folder that need not have weights."""
    _check_index(spec, folder)
    check_config(spec, folder / spec.subfolder / "config.json")


def _check_index(spec: ModelSpec, folder: Path) -> None:
    where = folder / INDEX
    index = read_json_object(where, "the index of a diffusers pipeline")
    if index.get("controlnet") and spec.subfolder != "controlnet":  # it would ask for a picture
        raise ArtifactError(str(where), "a pipeline with a ControlNet", f"one of {spec.name} alone")
    entry = index.get(spec.subfolder)
    classes = (spec.model_class().__name__, *spec.class_aliases)
    if not isinstance(entry, list) or len(entry) != 2 or entry[1] not in classes:
        got = f"{spec.subfolder} is {json.dumps(entry)[:80]}"
        raise ArtifactError(str(where), got, f"a {classes[0]}, as {spec.name} is")


def schedule(samples: int, prompts: int, steps: int) -> dict[int, set[int]]:
    """Choose which denoising steps of which prompts are kept: `samples` of them, spread evenly over both.

    Raises:
        UsageError: fewer than one, or more than there are.
    """
    if not 1 <= samples <= prompts * steps:
        want = f"1 to {prompts * steps}: {prompts} prompts of {steps} steps"
        raise UsageError("--calibration-samples", str(samples), want)
    used = min(samples, prompts)
    chosen: dict[int, set[int]] = {}
    for i in range(samples):  # neighbouring steps go to different prompts
        chosen.setdefault((i % used) * prompts // used, set()).add(i * steps // samples)
    return chosen


def sample_inputs(
    spec: ModelSpec,
    pipeline: Path,
    prompts: Sequence[Prompt],
    out: Path,
    *,
    samples: int,
    steps: int,
    height: int,
    width: int,
    frames: int = 1,
    guidance: float | None = None,
    seed: int = 0,
    device: torch.device = CPU,
    progress: Progress = lambda done, total, text="": None,
) -> int:
    """Run prompts through the pipeline and write the inputs of its denoiser to `out`.

    A prompt's run ends after its last step that is kept. The pipeline computes in the model's 16-bit type on a GPU, in
    f32 on a CPU, and is loaded as a whole.

    Args:
        pipeline: folder with model_index.json. prompts: with the pictures that the model's pipelines take.
        samples: denoising steps that are kept; each gives one input, or one per guidance branch.
        steps: denoising steps of a whole run. guidance: scale; the pipeline's own default when None.
        height, width: size of the images in pixels. frames: of a video, where the pipeline makes one.
        seed: prompt i starts from noise of seed + i.
        device: where the pipeline runs.
        progress: called with (denoising steps done, all, label).

    Returns:
        the number of inputs written.

    Raises:
        ArtifactError, UnsupportedError: a pipeline that is damaged, or not of this model.
        UsageError: see schedule.
    """
    chosen = schedule(samples, len(prompts), steps)
    dtype = spec.torch_dtype if device.type == "cuda" else torch.float32
    progress(0, 1, f"loading {pipeline.name}")
    pipe = _load(spec, pipeline, dtype).to(device)
    total = sum(max(wanted) + 1 for wanted in chosen.values())
    recorder = _record(spec, pipe, device, dtype, lambda done: progress(done, total, "sampling"))
    asked = call_arguments(pipe, spec, height, width, frames, steps, guidance) | {"output_type": "latent"}
    pictures_size = None if "height" in asked else (width, height)  # else they have the result's
    for index, wanted in sorted(chosen.items()):
        recorder.begin(wanted)
        files = zip(spec.pictures, prompts[index].pictures, strict=True)
        pictures = {name: read_picture(file, pictures_size) for name, file in files}
        try:
            pipe(prompt=prompts[index].text, **pictures, generator=torch.Generator().manual_seed(seed + index), **asked)
        except _EnoughError:
            continue
        if recorder.missing():  # a distilled pipeline may run fewer steps than asked for
            raise UsageError(
                "--calibration-steps",
                f"{steps}, of which {type(pipe).__name__} runs {recorder.step + 1}",
                "as many as it runs",
            )
    note = {
        "model": spec.name,
        "pipeline": pipeline.name,
        "prompts": len(chosen),
        "samples": samples,
        "steps": steps,
        "guidance": guidance,
        "seed": seed,
        "height": height,
        "width": width,
        "frames": frames,
    }
    save_tensors(out, recorder.tensors(), {_KEY: json.dumps(note)})
    return recorder.count


class _EnoughError(Exception):
    """No more steps of this prompt are wanted."""


class _Input(NamedTuple):
    """An input of the module, as denoiser.Input describes it."""

    name: str
    dtype: str


class _Kept(NamedTuple):
    """Recorded inputs of one size: shapes without the batch, inputs that all have in common, each call's others."""

    shapes: dict[str, torch.Size]
    shared: dict[str, Tensor]
    stacked: list[dict[str, Tensor]]


class _Recorder:
    """A runner of the torch module that keeps its inputs at the wanted steps."""

    def __init__(
        self, spec: ModelSpec, flat: nn.Module, device: torch.device, dtype: torch.dtype, tick: Callable[[int], None]
    ) -> None:
        self.spec, self.flat, self.device, self.tick = spec, flat, device, tick
        self._ios = {io.name: io for io in spec.inputs}
        self.inputs = [_Input(io.name, str(io.torch_dtype(dtype)).removeprefix("torch.")) for io in spec.inputs]
        self.kept: list[_Kept] = []
        self.count = self.done = 0
        self.begin(set())

    def begin(self, wanted: set[int]) -> None:
        """Begin the next prompt, of which the steps `wanted` are kept."""
        self.wanted, self.step = wanted, -1
        self._time: float | None = None

    def missing(self) -> bool:
        """Whether the run ended before the last wanted step."""
        return self.step < max(self.wanted)

    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Run one call of the denoiser; calls at one timestep are one step, as guidance branches may come apart."""
        time = float(inputs[self.spec.family.timestep].max())
        if time != self._time:
            if self.step >= max(self.wanted):
                raise _EnoughError
            self.step, self.done, self._time = self.step + 1, self.done + 1, time
            self.tick(self.done)
        if self.step in self.wanted:
            given = {n: io for n, io in self._ios.items() if io.default is None or (inputs[n] != io.default).any()}
            self._keep({n: inputs[n].to(io.torch_dtype(self.spec.torch_dtype)).cpu() for n, io in given.items()})
        return self.spec.run(self.flat, [inputs[io.name].to(self.device) for io in self.spec.inputs])

    def _keep(self, values: dict[str, Tensor]) -> None:
        """Keep a call's inputs, beside those that they can be stacked with: of equal shapes, and equal positions.

        What a call leaves out is not kept.
        """
        stacked = {name: value for name, value in values.items() if self._ios[name].has_batch}
        shared = {name: value.clone() for name, value in values.items() if name not in stacked}
        shapes = {name: value.shape[1:] for name, value in stacked.items()}
        self.count += len(next(iter(stacked.values())))
        for kept in self.kept:
            same = kept.shapes == shapes and kept.shared.keys() == shared.keys()
            if same and all(torch.equal(kept.shared[name], value) for name, value in shared.items()):
                kept.stacked.append(stacked)
                return
        self.kept.append(_Kept(shapes, shared, [stacked]))

    def tensors(self) -> dict[str, Tensor]:
        """The kept inputs, stacked: the file's tensors, as InputFile reads them."""
        found = {}
        for index, kept in enumerate(self.kept):
            joined = {name: torch.cat([one[name] for one in kept.stacked]) for name in kept.stacked[0]}
            for name, value in (kept.shared | joined).items():
                found[tensor_name(index, len(self.kept), name)] = value.contiguous()
        return found


def _load(spec: ModelSpec, folder: Path, dtype: torch.dtype) -> Any:
    from diffusers import DiffusionPipeline

    index = read_json_object(folder / INDEX, "the index of a diffusers pipeline")
    absent = {name: None for name, value in index.items() if value == [None, None]}  # some classes need them as None
    try:
        pipe = DiffusionPipeline.from_pretrained(
            folder,
            dtype=dtype,
            variant=_variant(spec, folder),
            local_files_only=True,
            use_safetensors=True,  # no pickles
            trust_remote_code=False,  # nor Python files in the folder
            **absent,
        )
    except Exception as error:  # whatever the folder's JSON makes diffusers, transformers and Python stumble over
        reason = first_line(error)
        raise ArtifactError(str(folder), f"cannot be loaded ({reason})", "a whole diffusers pipeline") from error
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _variant(spec: ModelSpec, folder: Path) -> str | None:
    """The variant to ask diffusers for: the build reads the same weights, so it is asked for only where it must be."""
    try:
        files = locate(spec, str(folder)).files
    except SvdqError:
        return None  # diffusers says what is wrong
    return spec.variant if spec.variant and all(f".{spec.variant}" in file.name for file in files) else None


def _record(
    spec: ModelSpec, pipe: Any, device: torch.device, dtype: torch.dtype, tick: Callable[[int], None]
) -> _Recorder:
    """Replace the pipeline's denoiser by a recorder, which runs the denoiser with the model's flat inputs."""
    name = component_of(pipe, spec)
    module = getattr(pipe, name)
    if not isinstance(module, spec.model_class()):
        raise ArtifactError(type(pipe).__name__, f"a {type(module).__name__}", f"a pipeline of {spec.name}")
    check_module(spec, module, f"pipe.{name}")
    spec.family.prepare(module)
    flat = spec.wrap(module.eval().requires_grad_(False))
    recorder = _Recorder(spec, flat, device, dtype, tick)
    setattr(pipe, name, Denoiser(recorder, spec, name, module.config, module).eval())
    return recorder
