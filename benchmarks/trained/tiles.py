"""What tiles cost: pictures of the trained autoencoder whole, by diffusers' tiles and by ours.

The pictures are drawn scenes twice as large as those that it learned from, so that a tile of its own size is a quarter
of one. Only what it makes of its own latents is compared: nothing is quantized.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from svdq_trt.models.autoencoder_config import autoencoder_scale
from svdq_trt.models.tiles import OVERLAP, by_tiles, starts
from trained import captions, metrics
from trained.gallery import SEED, device_name, from_units, save_results
from trained.sheet import TILES

SIDES, WHOLE = (192, 128), "whole"  # of tiles, in pixels


@torch.no_grad()
def tiles(work: Path, out: Path, *, count: int, device: str) -> None:
    """Make the pictures; writes out/vae-tiles.json and .safetensors, in the form of gallery's. `count`: pictures."""
    from diffusers import AutoencoderKL

    vae: Any = AutoencoderKL.from_pretrained(work / "vae").eval().to(device)
    scale = autoencoder_scale(vae.config)
    scene = captions.drawn_from(count, held_out=True, seed=SEED)
    drawn = captions.draw(scene, torch.Generator().manual_seed(SEED)).to(device)
    drawn = F.interpolate(drawn, scale_factor=2, mode="bicubic").clamp(-1, 1)
    latents = vae.encode(drawn).latent_dist.mode()
    whole = vae.decode(latents).sample
    made = {WHOLE: whole}
    for side in SIDES:
        vae.enable_tiling()
        vae.tile_sample_min_size, vae.tile_latent_min_size = side, side // scale
        made[f"diffusers' tiles of {side}"] = vae.decode(latents).sample
        vae.disable_tiling()
        made[f"tiles of {side}"] = by_tiles(lambda z: vae.decode(z).sample, latents, (side // scale,) * 2, 1)
    name, rows = f"{drawn.shape[-1]} pixels", []
    for label, pictures in made.items():
        row: dict[str, Any] = {"key": label, "section": name, "label": label}
        row["drawn_db"] = metrics.differences(pictures.clamp(-1, 1), drawn)["psnr_db"]
        if label != WHOLE:
            row |= metrics.differences(pictures.clamp(-1, 1), whole.clamp(-1, 1)) | changes(pictures - whole, label)
        rows.append(row)
    prompts = [captions.caption(row) for row in scene.tolist()]
    results = {"name": TILES, "prompts": prompts, "device": device_name(device), "ways": rows}
    save_results(out, results, {label: from_units(pictures).cpu().contiguous() for label, pictures in made.items()})


def changes(difference: Tensor, label: str) -> dict[str, float]:
    """How much a difference [B, 3, H, W] changes from a row to the next, in 1/255: where tiles begin, and anywhere."""
    side, size = int(label.rsplit(" ", 1)[1]), difference.shape[2]
    narrow = range(0, size, int(side * (1 - OVERLAP)))
    begins = [at - 1 for at in (narrow if label.startswith("diffusers") else starts(size, side, 1)) if at]
    change = difference.diff(dim=2).abs().mean((0, 1, 3)) * 127.5
    return {"seam": float(change[begins].mean()), "anywhere": float(change.mean())}
