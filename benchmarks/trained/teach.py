"""Train an autoencoder on the captioned scenes, a pipeline of diffusers around it, and a LoRA of another style.

What is written are folders and files as diffusers writes them.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from trained import captions
from trained.pipelines import Pipeline
from trained.train import fit

RECORD = "training.json"  # in each folder
DRAWN = 256  # pictures drawn and encoded at once
LORA_RANK = 16
WEIGHT_OF_SQUARES, WEIGHT_OF_KL = 4, 1e-4  # beside the absolute error, which alone lets small objects lose their hue


@dataclass(frozen=True)
class Effort:
    """How long to train what, on how much.

    Attributes:
        seconds, steps: at most. batch: scenes a step. lr: learning rate. scenes: how many are drawn and encoded ahead.
    """

    seconds: float
    batch: int
    lr: float
    steps: int = 100_000
    scenes: int = 65536

    def fit(
        self, name: str, parameters: list[nn.Parameter], loss: Callable[[], Tensor], device: str, mode: str
    ) -> dict[str, float]:
        """Train; returns what `train.fit` returns, and these numbers."""
        made = fit(name, parameters, loss, seconds=self.seconds, steps=self.steps, lr=self.lr, device=device, mode=mode)
        return {**asdict(self), **made}


def autoencoder() -> Any:
    """An AutoencoderKL of 4 channels, 8 pixels a side, with random weights."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(32, 32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        latent_channels=4,
        norm_num_groups=8,
        sample_size=captions.SIDE,
        shift_factor=0.0,
    )


def teach_vae(out: Path, effort: Effort, device: str, mode: str) -> None:
    """Write a trained autoencoder, whose scaled latents have mean square 1, to the folder `out`."""
    vae = autoencoder().to(device)
    record = effort.fit("vae", list(vae.parameters()), loss_of_pictures(vae, effort), device, mode)
    vae.requires_grad_(False)
    pictures = captions.draw(captions.drawn_from(effort.batch, held_out=True, seed=1).to(device))
    with torch.no_grad():
        latents = vae.encode(pictures).latent_dist.mode()
        error = (vae.decode(latents).sample.clamp(-1, 1) - pictures).square().mean()
    vae.register_to_config(scaling_factor=float(latents.square().mean().rsqrt()))
    save_record(out, {**record, "psnr_db": float(10 * torch.log10(4 / error))})
    vae.save_pretrained(out)


def loss_of_pictures(vae: Any, effort: Effort) -> Callable[[], Tensor]:
    """The autoencoder's loss of a random batch, half of it in the LoRA's style."""
    plain = effort.batch // 2

    def loss() -> Tensor:
        scene = captions.rows(effort.batch, vae.device)
        pictures = torch.cat((captions.draw(scene[:plain]), captions.draw(scene[plain:], ink=True)))
        latents = vae.encode(pictures).latent_dist
        again = vae.decode(latents.mean + latents.std * torch.randn_like(latents.std)).sample
        kl: Tensor = (latents.mean.square() + latents.var - 1 - latents.logvar).mean() / 2
        error: Tensor = again.float() - pictures
        return error.abs().mean() + WEIGHT_OF_SQUARES * error.square().mean() + WEIGHT_OF_KL * kl

    return loss


def teach_pipeline(kind: Pipeline, vae: Path, out: Path, plain: Effort, style: Effort, device: str, mode: str) -> None:
    """Write a trained pipeline to the folder `out`, and beside it a LoRA to lora_folder(out)."""
    from diffusers import AutoencoderKL
    from peft import LoraConfig
    from peft.utils import get_peft_model_state_dict

    pipe = kind.make(AutoencoderKL.from_pretrained(vae)).to(device)
    pipe.vae.requires_grad_(False)
    if hasattr(pipe.scheduler, "alphas_cumprod"):  # read in every step, so not from the host
        pipe.scheduler.alphas_cumprod = pipe.scheduler.alphas_cumprod.to(device)
    learning = [
        p for name in (*kind.encoders, kind.denoiser) for p in getattr(pipe, name).requires_grad_().parameters()
    ]
    record = plain.fit(kind.name, learning, loss_of_scenes(kind, pipe, plain, ink=False), device, mode)
    saved = copy.deepcopy(pipe)
    for module in saved.components.values():
        if isinstance(module, nn.Module):
            nn.Module.to(module, "cpu", kind.dtype)  # diffusers' own `to` warns of running what is only written
    saved.save_pretrained(out)
    save_record(out, {**record, "bytes": sum(file.stat().st_size for file in out.rglob("*") if file.is_file())})

    denoiser = getattr(pipe, kind.denoiser)
    for parameter in learning:
        parameter.requires_grad_(False)
    denoiser.add_adapter(LoraConfig(r=LORA_RANK, lora_alpha=LORA_RANK, target_modules=list(kind.lora)))
    learning = [parameter for parameter in denoiser.parameters() if parameter.requires_grad]
    record = style.fit(f"{kind.name}'s LoRA", learning, loss_of_scenes(kind, pipe, style, ink=True), device, mode)
    layers = {name: factor.to(kind.dtype) for name, factor in get_peft_model_state_dict(denoiser).items()}
    type(pipe).save_lora_weights(lora_folder(out), **{f"{kind.denoiser}_lora_layers": layers})
    save_record(lora_folder(out), record)


def lora_folder(pipeline: Path) -> Path:
    """Where the LoRA of a trained pipeline is."""
    return pipeline.with_name(f"{pipeline.name}-ink")


def save_record(folder: Path, record: dict[str, Any]) -> None:
    """Write what a training was, into its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / RECORD).write_text(json.dumps(record) + "\n")


def loss_of_scenes(kind: Pipeline, pipe: Any, effort: Effort, *, ink: bool) -> Callable[[], Tensor]:
    """The loss of a random batch of scenes that are drawn and encoded ahead."""
    scene = captions.drawn_from(effort.scenes, held_out=False, seed=2)
    texts = ["", *dict.fromkeys(map(captions.caption, scene.tolist()))]
    number = {text: i for i, text in enumerate(texts)}
    device = pipe.vae.device
    caption_of = torch.tensor([number[captions.caption(row)] for row in scene.tolist()], device=device)
    tokens = [ids.to(device) for ids in kind.tokens(pipe, texts)]
    latents = _encoded(pipe.vae, scene.to(device), ink)

    def loss() -> Tensor:
        chosen = torch.randint(len(latents), (effort.batch,), device=device)
        said = torch.rand(effort.batch, device=device) >= kind.empty
        caption = caption_of[chosen] * said  # caption 0 is the empty one
        return kind.loss(pipe, latents[chosen], [ids[caption] for ids in tokens])

    return loss


@torch.no_grad()
def _encoded(vae: Any, scene: Tensor, ink: bool) -> Tensor:
    """Scaled latents of the scenes."""
    parts = [vae.encode(captions.draw(part, ink=ink)).latent_dist.mode() for part in scene.split(DRAWN)]
    factor: float = vae.config.scaling_factor
    return factor * torch.cat(parts)
