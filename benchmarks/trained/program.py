"""examples/cpp's text_to_image beside Python: pictures of a trained pipeline by the same engines, from the same noise.

They are in w4a8, and have plans for the GPU that is present, also where no TensorRT lists it. Without a GPU they have
none, and Python runs them in ONNX Runtime.
"""

from __future__ import annotations

import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from PIL import Image
from pipeline_bench import plans
from safetensors.torch import save_file
from torch import Tensor

from svdq_trt.build.config import BuildConfig, Range
from svdq_trt.build.run import build
from svdq_trt.checkpoint.folder import open_folder
from svdq_trt.engine import plugin_lib
from svdq_trt.engine.gpu import local_arch
from svdq_trt.runtime.loading import load
from trained import captions, metrics
from trained.gallery import asked_for, device_name, in_units, quantize, right, save_results
from trained.pipelines import Pipeline
from trained.sheet import PROGRAM
from trained.ways import call, in_bytes

ARCH = 90  # without a GPU; by default in w4a8
EXACT, PYTHON, CPP = "16 bit", "w4a8, engines in Python", "w4a8, engines in C++"


def by_program(
    kind: Pipeline, work: Path, out: Path, *, program: Path, count: int, steps: int, device: str, preset: str
) -> None:
    """Make the pictures; writes out/<name>-cpp.json and .safetensors, in the form of gallery's.

    Args:
        program: text_to_image. count: prompts. steps: of denoising. device: of torch. preset: the quantizer's.
    """
    folder, name = work / kind.name, kind.name + PROGRAM
    scene, prompts = asked_for(count)
    engines = engines_of(kind, folder, work, steps=steps, device=device, preset=preset)
    noise = noise_of(folder, count, kind.dtype)
    pictures = {
        EXACT: in_python(kind, in_16_bit(kind, folder, device), prompts, noise, steps, device),
        PYTHON: in_python(kind, load(engines), prompts, noise, steps, device),
        CPP: in_cpp(kind, program, engines, prompts, noise, steps),
    }
    rows = []
    for label, made in pictures.items():
        row: dict[str, Any] = {"key": label, "section": "the program in C++", "label": label}
        row |= {"right": right(made, scene)}
        if label != EXACT:
            row |= metrics.differences(in_units(made), in_units(pictures[EXACT]))
        if label == CPP:
            row["python_db"] = metrics.differences(in_units(made), in_units(pictures[PYTHON]))["psnr_db"]
            row["equal"] = int((made == pictures[PYTHON]).flatten(1).all(1).sum())
        rows.append(row)
    results = {"name": name, "prompts": prompts, "steps": steps, "device": device_name(device), "ways": rows}
    save_results(out, results, pictures)


def engines_of(
    kind: Pipeline, folder: Path, work: Path, *, steps: int, device: str, preset: str, step_cache: bool = False
) -> Path:
    """The folder of a pipeline's engines, with plans where there is a GPU; `steps`: as gallery.quantize's."""
    out = work / f"{kind.name}-quantized"
    made = quantize(kind, folder, out, steps=steps, device=device, preset=preset, archs=(ARCH,))
    side, tokens = captions.SIDE, kind.asked.get("max_sequence_length")
    config = BuildConfig(
        model=str(folder),
        archs=(local_arch() or ARCH,),
        out=work / f"{kind.name}-engines{'-step-cache' if step_cache else ''}",
        format="w4a8",
        height=Range(side, side, side),
        width=Range(side, side, side),
        tokens=tokens and Range(tokens, tokens, tokens),
        device=device,
        quantized=made["w4a8"],
        pipeline=folder,
        check=False,
        step_cache=step_cache,
    )
    (built,) = build(config)
    if local_arch() is not None and built.manifest.plan is None:
        plans.make(built.engine.folder)
    return built.engine.folder


def noise_of(folder: Path, count: int, dtype: torch.dtype) -> list[Tensor]:
    """Of each picture, from its number: diffusers' `latents`, of the shape of the denoiser's input."""
    sides = {"height": captions.SIDE, "width": captions.SIDE}
    spec = open_folder(folder, sides)
    shape = spec.inputs[0].shape(spec.profile.sizes(1) | sides | {"batch": 1})
    return [torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype) for seed in range(count)]


def in_16_bit(kind: Pipeline, folder: Path, device: str) -> Any:
    """Diffusers' own pipeline."""
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(folder, dtype=kind.dtype).to(device)


def in_python(kind: Pipeline, pipe: Any, prompts: list[str], noise: list[Tensor], steps: int, device: str) -> Tensor:
    """By a pipeline of diffusers, of modules or of engines; uint8 [B, 3, SIDE, SIDE]."""
    pipe.set_progress_bar_config(disable=True)
    images: list[Any] = []
    for prompt, latents in zip(prompts, noise, strict=True):
        images += call(pipe, kind, prompt, steps, latents=latents.to(device))
    return in_bytes(images)


def in_cpp(kind: Pipeline, program: Path, engines: Path, prompts: list[str], noise: list[Tensor], steps: int) -> Tensor:
    """By the program, which is started for each picture; uint8 [B, 3, SIDE, SIDE]."""
    images = []
    with TemporaryDirectory() as exchange:
        start, out = Path(exchange, "noise.safetensors"), Path(exchange, "out.png")
        for prompt, latents in zip(prompts, noise, strict=True):
            save_file({"latents": latents}, start)
            options = {"prompt": prompt, "noise": start, "out": out, "steps": steps, "guidance": kind.guidance}
            options |= {"width": captions.SIDE, "height": captions.SIDE, "plugin": plugin_lib.find().path}
            words = [word for option, value in options.items() for word in (f"--{option}", str(value))]
            subprocess.run([program, engines, *words], check=True)
            images.append(np.asarray(Image.open(out)))
    return in_bytes(images)
