"""From folders and options to figures: what is compared, on which inputs, checked before anything is opened."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from svdq_trt.artifact import manifest as manifests
from svdq_trt.artifact.manifest import Manifest
from svdq_trt.base.errors import ArtifactError, UnsupportedError, UsageError
from svdq_trt.bench.choose import check_alike, check_place
from svdq_trt.bench.clock import CudaClock
from svdq_trt.bench.compiled import PRECISIONS, TorchContender
from svdq_trt.bench.engine import EngineContender
from svdq_trt.bench.rounds import Contender, Measured, measure
from svdq_trt.engine.gpu import local_arch
from svdq_trt.evaluate.diff import Subject, read_inputs, synthetic_inputs
from svdq_trt.evaluate.runner import as_taken
from svdq_trt.models import ModelSpec, get_model
from svdq_trt.runtime.session import Session
from svdq_trt.runtime.shapes import check_inputs


@dataclass(frozen=True)
class Options:
    """What to time, and how.

    Attributes:
        engines: folders; one model. torch: precisions of diffusers' module beside them, see compiled.py.
        rounds, repeat: number of rounds, and of timed calls in each. graph: as CUDA graphs.
        profile: also the parts of a call. device: index of the GPU.
        inputs: a .safetensors file of inputs, in place of synthetic ones of `sizes` and `seed`.
        weight_budgets: bytes of weights on the GPU, each a contender beside each engine with all of them.
        choose: where the link to the faster engine will be, None without.
        allow_host_code, allow_arch_mismatch: see Session.
    """

    engines: tuple[Path, ...]
    torch: tuple[str, ...] = ()
    rounds: int = 5
    repeat: int = 20
    graph: bool = True
    profile: bool = True
    device: int = 0
    inputs: Path | None = None
    sizes: Mapping[str, int | None] | None = None
    seed: int = 0
    weight_budgets: tuple[int, ...] = ()
    choose: Path | None = None
    allow_host_code: bool = False
    allow_arch_mismatch: bool = False


@dataclass(frozen=True)
class Report:
    """The figures, of the engines first, then of torch.

    Attributes:
        gpu: name of the GPU. model: name of the model. inputs: sizes and seed, or the file.
    """

    gpu: str
    model: str
    inputs: dict[str, Any]
    found: list[Measured]


def run(options: Options, say: Callable[[str], None]) -> Report:
    """Check everything, then measure.

    Raises:
        UsageError, ArtifactError: options or folders that do not go together. UnsupportedError: no GPU.
        ShapeError, SvdqError: inputs that do not fit; see Session.
    """
    engines = _read(options)
    model = next(iter(engines.values()))
    feed, source = _inputs(options, engines)
    if local_arch(options.device) is None:
        fix = "Run svdq-trt bench on the machine that the engines are for."
        raise UnsupportedError(f"CUDA device {options.device}", "not found", "an NVIDIA GPU and its driver", fix)
    spec, clock = get_model(model.source), CudaClock(options.device)

    def opener(folder: Path, budget: int | None) -> Callable[[bool], Session]:
        return lambda cached: Session(
            folder,
            weight_budget=budget,
            allow_host_code=options.allow_host_code,
            allow_arch_mismatch=options.allow_arch_mismatch,
            device=options.device,
            cuda_graph=options.graph,
            runtime_cache=cached,
            memory="torch",
        )

    contenders: list[Contender] = [
        EngineContender(folder, data, feed, opener(folder, budget), clock, budget)
        for folder, data in engines.items()
        for budget in (None, *options.weight_budgets)
    ]
    contenders += [
        TorchContender(spec, precision, lambda: on_device(spec, feed, clock.device), clock, options.graph)
        for precision in options.torch
    ]
    with clock.running():
        found = measure(contenders, clock, options.rounds, options.repeat, options.profile, say)
        return Report(clock.gpu, model.model, source, found)


def on_device(spec: ModelSpec, feed: Mapping[str, np.ndarray], device: str) -> dict[str, torch.Tensor]:
    """The model's inputs on `device`, in its own dtypes."""
    return {io.name: torch.from_numpy(feed[io.name]).to(device, io.torch_dtype(spec.torch_dtype)) for io in spec.inputs}


def _read(options: Options) -> dict[Path, Manifest]:
    """The engines' manifests, once all that can be checked without a GPU is."""
    for word in options.torch:
        if word not in PRECISIONS:
            raise UsageError("--torch", f"'{word}'", f"one of {', '.join(PRECISIONS)}")
    engines: dict[Path, Manifest] = {}
    for folder in options.engines:
        if folder.resolve() in {other.resolve() for other in engines}:
            raise UsageError(str(folder), "named twice", "each engine once")
        engines[folder] = data = manifests.read(folder)
        if data.plan is None:
            raise manifests.no_plan(folder, data)
    (first, one), *others = engines.items()
    for folder, data in others:
        if data.model != one.model:
            raise ArtifactError(str(folder), f"an engine of {data.model}", f"one of {one.model}, as {first} is")
    for folder, data in engines.items():
        if options.weight_budgets and not (data.plan and data.plan.weight_streaming):
            got = f"{folder}: built without --weight-streaming"
            raise UsageError("--weight-budget", got, "an engine that was built with it")
    if options.choose is not None:
        if len(engines) < 2:
            raise UsageError("--choose", "one engine", "two or more to choose from")
        check_alike(engines)
        check_place(options.choose, list(engines))
    return engines


def _inputs(options: Options, engines: Mapping[Path, Manifest]) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
    """The inputs in f32, and where they come from."""
    if options.inputs is not None:
        feed = read_inputs(options.inputs)
        for data in engines.values():  # one call is timed: the file's samples are one batch
            profiles = [tensor.profile for tensor in data.inputs]
            check_inputs(profiles, as_taken(profiles, feed))
        return feed, {"file": str(options.inputs)}
    subjects = [Subject(folder, data, "TensorRT") for folder, data in engines.items()]
    feed, chosen = synthetic_inputs(subjects, None, options.sizes or {}, options.seed, "opt")
    return feed, {"seed": options.seed, **chosen}
