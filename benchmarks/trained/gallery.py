"""Pictures of a trained pipeline in every way, of prompts that no denoiser was trained on, and their figures."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from svdq_trt.build.config import BuildConfig, Range, Sampling
from svdq_trt.build.run import quantize_formats
from svdq_trt.checkpoint.folder import open_folder
from trained import captions, metrics
from trained.pipelines import Pipeline
from trained.teach import RECORD, lora_folder
from trained.ways import Asked, ways

ARCHS = (89, 120, 90)  # by default in int4, nvfp4 and w4a8
SEED, CALIBRATED = 3, 16  # of the prompts; how many other ones are run for calibration


def gallery(
    kind: Pipeline,
    work: Path,
    out: Path,
    *,
    count: int,
    steps: int,
    device: str,
    engines: Path | None = None,
    preset: str = "default",
) -> None:
    """Make pictures by what `teach` left in `work`; writes out/<name>.json and out/<name>.safetensors.

    Args:
        count: prompts. steps: of denoising. device: of torch and the quantizer. preset: the quantizer's.
        engines: a folder that `svdq-trt build --out` wrote; the engines of this pipeline are run as well.
    """
    begin, folder = time.perf_counter(), work / kind.name
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    scene, prompts = asked_for(count)
    artifacts = quantize(
        kind, folder, work / f"{kind.name}-quantized", steps=steps, device=device, preset=preset, archs=ARCHS
    )
    asked = Asked(
        kind,
        open_folder(folder, {"height": captions.SIDE, "width": captions.SIDE}),
        folder,
        artifacts,
        prompts,
        steps,
        device,
    )
    print(f"{kind.name}: quantized in {time.perf_counter() - begin:.0f} s", flush=True)
    made: dict[str, Tensor] = {}
    found: list[dict[str, Any]] = []
    results = {
        "name": kind.name,
        "prompts": prompts,
        "steps": steps,
        "guidance": kind.guidance,
        "device": device_name(device),
        "drawn": right_when_drawn(scene),
        "training": {part.name: record(part) for part in (work / "vae", folder, lora_folder(folder))},
        "ways": found,
    }
    for way in ways(asked, engines):
        pictures, first = way.pictures(), next((row for row in found if row["section"] == way.section), None)
        row: dict[str, Any] = {"key": f"{way.section}: {way.label}", "section": way.section, "label": way.label}
        row |= {"right": right(pictures, scene)}
        if first is not None:
            row |= metrics.differences(in_units(pictures), in_units(made[first["key"]]))
        made[row["key"]] = pictures
        found.append(row)
        save_results(out, results, made)
        shown, against = 100 * row["right"]["whole"], f", PSNR {row['psnr_db']:.1f} dB" if first else ""
        took = time.perf_counter() - begin
        print(f"{kind.name}, {row['key']}: {shown:.0f} % as prompted{against}, at {took:.0f} s", flush=True)


def save_results(out: Path, results: dict[str, Any], pictures: dict[str, Tensor]) -> None:
    """Write <name>.json, and all pictures beside it."""
    save_file(pictures, out / f"{results['name']}.safetensors")
    (out / f"{results['name']}.json").write_text(json.dumps(results, indent=1) + "\n")


def asked_for(count: int) -> tuple[Tensor, list[str]]:
    """Scenes [count, 7] that no denoiser was trained on, and their prompts."""
    scene = captions.drawn_from(count, held_out=True, seed=SEED)
    return scene, [captions.caption(row) for row in scene.tolist()]


def device_name(device: str) -> str:
    """Of torch's device, for people."""
    return torch.cuda.get_device_name() if device == "cuda" else "CPU"


def quantize(
    kind: Pipeline, folder: Path, out: Path, *, steps: int, device: str, preset: str, archs: tuple[int, ...]
) -> dict[str, Path]:
    """Quantize a pipeline's denoiser, on inputs from prompts that it was trained on; returns the files by format."""
    scene = captions.drawn_from(CALIBRATED, held_out=False, seed=SEED)
    out.mkdir(parents=True, exist_ok=True)
    prompts = out / "prompts.txt"
    prompts.write_text("".join(f"{captions.caption(row)}\n" for row in scene.tolist()))
    size = Range(captions.SIDE, captions.SIDE, captions.SIDE)
    config = BuildConfig(
        model=str(folder),
        checkpoint=str(folder),
        archs=archs,
        out=out,
        height=size,
        width=size,
        preset=preset,
        device=device,
        sampling=Sampling(folder, prompts, steps=steps, guidance=kind.guidance),
    )
    return {name: made.artifact.path for name, made in quantize_formats(config).items()}


def right(pictures: Tensor, scene: Tensor) -> dict[str, float]:
    """Shares of what bytes [B, 3, SIDE, SIDE] show of what their prompts say, by captions.Shown's names."""
    return {name: float(share.mean()) for name, share in captions.read(in_units(pictures), scene)._asdict().items()}


def right_when_drawn(scene: Tensor) -> dict[str, float]:
    """The same of drawn pictures, so that the measure's own errors are known."""
    drawn = captions.draw(scene, torch.Generator().manual_seed(SEED))
    return right(from_units(drawn), scene)


def in_units(pictures: Tensor) -> Tensor:
    """Bytes as numbers from -1 to 1."""
    return pictures.float() / 127.5 - 1


def from_units(pictures: Tensor) -> Tensor:
    """Numbers from -1 to 1 as bytes."""
    return ((pictures.clamp(-1, 1) + 1) * 127.5).round().byte()


def record(folder: Path) -> dict[str, Any]:
    """What `teach` wrote of a training."""
    found: dict[str, Any] = json.loads((folder / RECORD).read_text())
    return found
