"""What the step cache costs: a trained pipeline's pictures in w4a8, with thresholds for it and without it.

The cache is diffusers' own FirstBlockCache, with which an engine's agrees in every decision
(tests/cpu/step_cache/test_decisions.py). Pictures are made one by one: those of a batch would be decided on together.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from svdq_trt.artifact import svdq_file
from svdq_trt.checkpoint.folder import open_folder
from svdq_trt.nn.restore import restore_model
from trained import captions, metrics
from trained.gallery import asked_for, device_name, in_units, quantize, right
from trained.linears import unpack
from trained.pipelines import Pipeline
from trained.publish import STEP_CACHE
from trained.ways import call, in_bytes

STEPS = 28  # of FLUX.1
THRESHOLDS = (0.05, 0.06, 0.07, 0.08, 0.1, 0.2)
EXACT, UNCACHED = "16 bit", "w4a8"


def step_cache(kind: Pipeline, work: Path, out: Path, *, count: int, steps: int, device: str, preset: str) -> None:
    """Make the pictures; writes out/<name>-step-cache.json and .safetensors, in the form of gallery's.

    Args:
        count: prompts. steps: of denoising, in the calibration. device, preset: the quantizer's.
    """
    folder, name = work / kind.name, kind.name + STEP_CACHE
    scene, prompts = asked_for(count)
    made = quantize(
        kind, folder, work / f"{kind.name}-quantized", steps=steps, device=device, preset=preset, archs=(90,)
    )
    spec = open_folder(folder, {"height": captions.SIDE, "width": captions.SIDE})
    denoiser = restore_model(svdq_file.load(made["w4a8"]), spec)
    unpack(denoiser)
    found: list[dict[str, Any]] = []
    results = {
        "name": name,
        "prompts": prompts,
        "steps": STEPS,
        "device": device_name(device),
        "ways": found,
    }
    pictures: dict[str, Tensor] = {}
    cached = [(f"{UNCACHED}, {threshold:g}", denoiser, threshold) for threshold in THRESHOLDS]
    for label, module, threshold in [(EXACT, None, 0.0), (UNCACHED, denoiser, 0.0), *cached]:
        pictures[label], computed = sampled(kind, folder, prompts, module, threshold, device)
        row = {"key": label, "section": "step cache", "label": label, "computed": computed}
        row |= {"right": right(pictures[label], scene)}
        if label != EXACT:
            row |= metrics.differences(in_units(pictures[label]), in_units(pictures[EXACT]))
        if threshold:
            against = metrics.differences(in_units(pictures[label]), in_units(pictures[UNCACHED]))
            row["uncached_db"] = against["psnr_db"]
        found.append(row)
        save_file(pictures, out / f"{name}.safetensors")
        (out / f"{name}.json").write_text(json.dumps(results, indent=1) + "\n")
        print(f"{name}, {label}: {computed:.1f} of {STEPS} steps", flush=True)


def sampled(
    kind: Pipeline, folder: Path, prompts: list[str], denoiser: nn.Module | None, threshold: float, device: str
) -> tuple[Tensor, float]:
    """The pictures, uint8 [B, 3, SIDE, SIDE], and how many steps of one were computed, on average.

    Args:
        denoiser: None for the folder's own. threshold: of the cache, 0 for none.
    """
    from diffusers import DiffusionPipeline, FirstBlockCacheConfig

    pipe = DiffusionPipeline.from_pretrained(folder, dtype=kind.dtype)
    if denoiser is not None:
        setattr(pipe, kind.denoiser, denoiser)
    pipe.to(device)
    pipe.set_progress_bar_config(disable=True)
    model = getattr(pipe, kind.denoiser)
    if threshold:
        model.enable_cache(FirstBlockCacheConfig(threshold))
    computed: list[None] = []
    inside = next(model.single_transformer_blocks[-1].children())  # which only a computed step reaches
    counting = inside.register_forward_hook(lambda *_: computed.append(None))
    images = []
    for seed, prompt in enumerate(prompts):
        images += call(pipe, kind, prompt, STEPS, generator=torch.Generator().manual_seed(seed))
    counting.remove()
    if threshold:
        model.disable_cache()
    return in_bytes(images), len(computed) / len(prompts)
