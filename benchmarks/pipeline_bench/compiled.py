"""The job of the rival: a prompt to pictures by diffusers' own pipeline under torch.compile."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pipeline_bench.measured import GPU, Memory, time_pictures
from svdq_trt.artifact import manifest
from svdq_trt.bench.compiled import compile_module, random_module
from svdq_trt.models import get_model
from svdq_trt.models.pipelines import PipelineFolder, call_arguments, text_arguments

DEVICE = f"cuda:{GPU}"


@torch.no_grad()
def run(job: dict[str, Any]) -> dict[str, Any]:
    """Time diffusers' pipeline on random weights of the engines' dtypes. job: as theirs, and mode, of torch.compile.

    With a mode the whole denoiser is compiled, else what diffusers says is repeated in it; the VAE's decoder too.
    Weights are made up on the GPU, where they are after `weights_s`: none are read from a disk. A language model has
    neither a head for words nor a vision tower, which the pipeline holds and does not run; it has all layers.
    """
    folder = Path(job["folder"])
    built, source = manifest.read(folder), PipelineFolder.read(folder)
    spec = get_model(built.source)
    tokens = spec.built_sizes(built, 2)["tokens"]
    with Memory() as memory:
        parts = {part.component: part for part in source.parts(spec.act_dtype, tokens)}
        components = source.files | {source.kind.denoiser: random_module(spec, False, DEVICE).eval()}
        for name in source.modules:
            with torch.device(DEVICE):
                module = replace(parts[name], states=()).build()
            components[name] = module.to(spec.torch_dtype).eval()  # the VAE is upcast by SDXL
        pipe = source.diffusers_class()(**source.without_components() | components)
        pipe.set_progress_bar_config(disable=True)
        compile_module(components[source.kind.denoiser], job["mode"])
        components["vae"].decoder.compile()
        torch.cuda.synchronize()
        given = dict(job["request"])
        asked = call_arguments(
            pipe, spec, given.pop("height"), given.pop("width"), 1, given.pop("steps"), given.pop("guidance")
        )
        asked |= text_arguments(pipe, source.kind, tokens)

        def picture(seed: int) -> Any:
            return pipe(generator=torch.Generator().manual_seed(seed), **given, **asked).images[0]

        ready = time.time()
        found = time_pictures(job, picture)
    return found | {"memory_bytes": memory.used, "weights_s": ready - job["started"]}
