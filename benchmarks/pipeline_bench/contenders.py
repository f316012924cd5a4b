"""Jobs: a prompt to pictures, by engines or by diffusers' own pipeline under torch.compile, each in a fresh process."""

from __future__ import annotations

import inspect
import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from PIL.Image import Image

from svdq_trt.artifact import manifest
from svdq_trt.bench.clock import CudaClock
from svdq_trt.bench.compiled import compile_module, random_module
from svdq_trt.models import get_model
from svdq_trt.models.parts import GRAPHS
from svdq_trt.models.pipelines import PipelineFolder, call_arguments
from svdq_trt.runtime.generate import Request, Times, generate
from svdq_trt.runtime.loading import load, slowest_opening

CLOCK = CudaClock()
PERIOD = 0.005  # seconds between looks at the GPU's memory


class Memory:
    """The most GPU memory in use by any process, in bytes, while the context is open; a thread looks at it."""

    def __init__(self) -> None:
        self.most = CLOCK.used_bytes()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(PERIOD):
            self.most = max(self.most, CLOCK.used_bytes())


def engines(job: dict[str, Any]) -> dict[str, Any]:
    """Time engines. job: folder, allow (options of `load`), request (fields of Request), pictures, started, out."""
    with Memory() as memory:
        before = memory.most
        pipe = load(job["folder"], runtime="tensorrt", **job["allow"])
        pipe.set_progress_bar_config(disable=True)
        opened = time.time()
        times: list[Times] = []

        def picture(seed: int) -> Image:
            (image,), taken = generate(pipe, Request(seed=seed, **job["request"]))
            times.append(taken)
            return image

        found = _pictures(job, picture)
    parts = {part: statistics.median(one.seconds[part] for one in times[1:]) for part in times[0].seconds}
    slowest, seconds = slowest_opening(pipe)
    opening = {"open_s": opened - job["started"], "slowest": slowest, "slowest_s": dict(seconds)}
    return found | opening | {"memory_bytes": memory.most - before, "parts_s": parts}


@torch.no_grad()
def compiled(job: dict[str, Any]) -> dict[str, Any]:
    """Time diffusers' pipeline on random weights of the engines' dtypes. job: as `engines`, and mode, of torch.compile.

    With a mode the whole denoiser is compiled, else what diffusers says is repeated in it; the VAE's decoder too.
    Weights are made up on the GPU, where they are after `weights_s`: none are read from a disk. A language model has
    neither a head for words nor a vision tower, which the pipeline holds and does not run.
    """
    folder = Path(job["folder"])
    built, source = manifest.read(folder), PipelineFolder.read(folder)
    spec = get_model(built.source)
    with Memory() as memory:
        before = memory.most
        parts = {part.component: part for part in source.parts(spec.act_dtype, spec.profile.tokens[1])}
        components: dict[str, Any] = {}
        for name, class_name in source.classes.items():
            if name == source.kind.denoiser:
                components[name] = random_module(spec, False, CLOCK.device).eval()
            elif class_name in GRAPHS:
                with torch.device(CLOCK.device):
                    components[name] = parts[name].build().to(spec.torch_dtype).eval()  # the VAE is upcast by SDXL
            else:
                components[name] = _from_files(class_name, folder / name)
        pipe = source.diffusers_class()(**source.without_components() | components)
        pipe.set_progress_bar_config(disable=True)
        compile_module(components[source.kind.denoiser], job["mode"])
        components["vae"].decoder.compile()
        torch.cuda.synchronize()
        given = dict(job["request"])
        asked = call_arguments(
            pipe, spec, given.pop("height"), given.pop("width"), 1, given.pop("steps"), given.pop("guidance")
        )
        if "max_sequence_length" in inspect.signature(pipe.__call__).parameters:  # the engines' padding
            asked["max_sequence_length"] = spec.built_sizes(built, 2)["tokens"] - source.kind.clip_tokens

        def picture(seed: int) -> Image:
            image: Image = pipe(generator=torch.Generator().manual_seed(seed), **given, **asked).images[0]
            return image

        ready = time.time()
        found = _pictures(job, picture)
    return found | {"memory_bytes": memory.most - before, "weights_s": ready - job["started"]}


def _pictures(job: dict[str, Any], picture: Callable[[int], Image]) -> dict[str, Any]:
    """Time the first picture from `started` and the others each by itself; all are written beside the engine."""
    seconds, since = [], job["started"]
    for seed in range(1 + job["pictures"]):
        picture(seed).save(f"{job['out']}-{seed}.png")
        seconds.append(time.time() - since)
        since = time.time()
    return {"first_s": seconds[0], "picture_s": statistics.median(seconds[1:]), "all_s": seconds[1:]}


def _from_files(class_name: str, folder: Path) -> Any:
    import diffusers
    import transformers

    cls = getattr(transformers if hasattr(transformers, class_name) else diffusers, class_name)
    return cls.from_pretrained(folder, local_files_only=True)
