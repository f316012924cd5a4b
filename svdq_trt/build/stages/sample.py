"""Stage: a diffusers pipeline and prompts -> inputs to calibrate on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from svdq_trt.base.device import torch_device
from svdq_trt.base.progress import Progress
from svdq_trt.base.ranks import local_rank


def run(args: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """args: model, pipeline, prompts, samples, steps, guidance, seed, height, width, device, out."""
    from svdq_trt.calibrate.sample import read_prompts, sample_inputs
    from svdq_trt.models import get_model

    inputs = sample_inputs(
        get_model(args["model"]),
        Path(args["pipeline"]),
        read_prompts(Path(args["prompts"])),
        Path(args["out"]),
        samples=args["samples"],
        steps=args["steps"],
        height=args["height"],
        width=args["width"],
        guidance=args["guidance"],
        seed=args["seed"],
        device=torch_device(args["device"], local_rank()),
        progress=progress,
    )
    return {"inputs": inputs}
