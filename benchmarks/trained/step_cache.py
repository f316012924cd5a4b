"""What the step cache costs: a trained pipeline's pictures by engines in w4a8, with thresholds for it and without it.

Beside them are pictures in 16 bit with diffusers' own FirstBlockCache, which decides by the same thresholds. All are
made one by one: those of a batch would be decided on together.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svdq_trt.runtime.loading import load
from trained import metrics
from trained.gallery import asked_for, device_name, in_units, right, save_results
from trained.pipelines import Pipeline
from trained.program import engines_of, in_16_bit
from trained.sheet import STEP_CACHE
from trained.ways import call, in_bytes

STEPS = 28  # of FLUX.1
THRESHOLDS = (0.05, 0.06, 0.07, 0.08, 0.1, 0.2)
DIFFUSERS = (0.08, 0.1, 0.2)
EXACT = "16 bit"

Made = tuple[Tensor, float]  # pictures, uint8 [B, 3, SIDE, SIDE]; how many steps of one were computed, on average


def step_cache(kind: Pipeline, work: Path, out: Path, *, count: int, steps: int, device: str, preset: str) -> None:
    """Make the pictures; writes out/<name>-step-cache.json and .safetensors, in the form of gallery's.

    Args:
        count: prompts. steps: of denoising, in the calibration. device: of torch. preset: the quantizer's.
    """
    folder, name = work / kind.name, kind.name + STEP_CACHE
    scene, prompts = asked_for(count)
    engines = engines_of(kind, folder, work, steps=steps, device=device, preset=preset, step_cache=True)
    rows: list[dict[str, Any]] = []
    results = {"name": name, "prompts": prompts, "steps": STEPS, "device": device_name(device), "ways": rows}
    pictures: dict[str, Tensor] = {}
    sections = {
        "16 bit, diffusers' cache": in_torch(kind, in_16_bit(kind, folder, device), prompts),
        "w4a8": by_engines(kind, load(engines), prompts),
    }
    for section, ways in sections.items():
        uncached = None
        for threshold, (made, computed) in ways:
            label = f"{section}, {threshold:g}" if threshold else section.partition(",")[0]
            pictures[label] = made
            row = {"key": label, "section": section, "label": label, "computed": computed, "right": right(made, scene)}
            if label != EXACT:
                row |= metrics.differences(in_units(made), in_units(pictures[EXACT]))
            if uncached is not None:
                row["uncached_db"] = metrics.differences(in_units(made), in_units(uncached))["psnr_db"]
            uncached = made if uncached is None else uncached
            rows.append(row)
            save_results(out, results, pictures)
            print(f"{name}, {label}: {computed:.1f} of {STEPS} steps", flush=True)


def by_engines(kind: Pipeline, pipe: Any, prompts: list[str]) -> Iterator[tuple[float, Made]]:
    """By a pipeline of `load`: thresholds, the first of them 0, and what was made."""
    session = getattr(pipe, kind.denoiser).runner
    for threshold in (0.0, *THRESHOLDS):
        session.step_cache = threshold
        made = sampled(kind, pipe, prompts)
        yield threshold, (made, STEPS - session.skipped / len(prompts))


def in_torch(kind: Pipeline, pipe: Any, prompts: list[str]) -> Iterator[tuple[float, Made]]:
    """By diffusers, the same."""
    from diffusers import FirstBlockCacheConfig

    model = getattr(pipe, kind.denoiser)
    computed: list[None] = []
    for threshold in (0.0, *DIFFUSERS):
        if threshold:
            model.enable_cache(FirstBlockCacheConfig(threshold))
        inside = next(model.single_transformer_blocks[-1].children())  # which only a computed step reaches
        counting = inside.register_forward_hook(lambda *_: computed.append(None))
        computed.clear()
        made = sampled(kind, pipe, prompts)
        counting.remove()
        if threshold:
            model.disable_cache()
        yield threshold, (made, len(computed) / len(prompts))


def sampled(kind: Pipeline, pipe: Any, prompts: list[str]) -> Tensor:
    """The pictures, each made by itself."""
    pipe.set_progress_bar_config(disable=True)
    images: list[Any] = []
    for seed, prompt in enumerate(prompts):
        images += call(pipe, kind, prompt, STEPS, generator=torch.Generator().manual_seed(seed))
    return in_bytes(images)
