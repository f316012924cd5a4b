"""How a model of svdq_trt.models is trained and sampled on the scenes: its inputs, its target, its sampler."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import MappingProxyType

import torch
from torch import Tensor

from svdq_trt.models import ModelSpec, get_model
from trained import scenes

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x_t [B, 4, H, W], t [B], labels [B]) -> [B, 4, H, W]
STEPS = 1000
PIXELS = 8 * scenes.SIZE  # a latent has an eighth of the picture's side; here it is the picture


@dataclass(frozen=True)
class UNetTask:
    """sdxl-tiny: predicts the noise of SDXL's schedule; DDIM without its random part."""

    name: str = "sdxl-tiny"

    @property
    def spec(self) -> ModelSpec:
        """The model's data."""
        return get_model(self.name)

    def inputs(self, x: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """What the wrapped model takes, all f32."""
        ios = {io.name: io for io in self.spec.inputs}
        text = scenes.embedding(labels, 77, int(ios["encoder_hidden_states"].dims[2]))  # type: ignore[arg-type]
        pooled = scenes.embedding(labels, 2, int(ios["text_embeds"].dims[1])).mean(1)  # type: ignore[arg-type]
        size = torch.tensor([PIXELS, PIXELS, 0, 0, PIXELS, PIXELS], dtype=torch.float32, device=x.device)
        return x, t.float(), text, pooled, size.expand(len(x), 6)

    def noised(self, x0: Tensor, noise: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """A random step: (x_t, t, target)."""
        t = torch.randint(STEPS, (len(x0),), generator=rng, device=x0.device)
        keep = _alphas(x0.device)[t][:, None, None, None]
        return keep.sqrt() * x0 + (1 - keep).sqrt() * noise, t, noise

    def sample(self, predict: Predict, noise: Tensor, labels: Tensor, steps: int) -> Tensor:
        """Pictures [B, 4, H, W] from noise."""
        alphas = _alphas(noise.device)
        times = torch.linspace(STEPS - 1, 0, steps + 1).round().long().tolist()
        x = noise
        for now, then in zip(times, [*times[1:-1], -1], strict=False):
            keep, next_keep = alphas[now], alphas[then] if then >= 0 else torch.ones((), device=x.device)
            eps = predict(x, torch.full((len(x),), now, device=x.device), labels)
            x0 = ((x - (1 - keep).sqrt() * eps) / keep.sqrt()).clamp(-1.2, 1.2)
            eps = (x - keep.sqrt() * x0) / (1 - keep).sqrt()
            x = next_keep.sqrt() * x0 + (1 - next_keep).sqrt() * eps
        return x.clamp(-1, 1)

    def output(self, y: Tensor) -> Tensor:
        """The model's output as [B, 4, H, W]."""
        return y


def _alphas(device: torch.device) -> Tensor:
    """Cumulative products of SDXL's scaled-linear schedule."""
    betas = torch.linspace(0.00085**0.5, 0.012**0.5, STEPS, dtype=torch.float64).square()
    return torch.cumprod(1 - betas, 0).float().to(device)


@dataclass(frozen=True)
class FluxTask:
    """flux1-tiny at twice its width, 3 + 4 blocks: predicts the velocity of a straight path; Euler steps."""

    name: str = "flux1-tiny"

    @property
    def spec(self) -> ModelSpec:
        """The model's data."""
        spec = get_model(self.name)
        wider = {"num_attention_heads": 4, "num_layers": 3, "num_single_layers": 4}
        return replace(spec, config=MappingProxyType({**spec.config, **wider}))

    def inputs(self, x: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """What the wrapped model takes, by the names of its inputs."""
        made = {
            "hidden_states": lambda dims: _packed(x),
            "encoder_hidden_states": lambda dims: scenes.embedding(labels, 16, int(dims[2])),
            "pooled_projections": lambda dims: scenes.embedding(labels, 2, int(dims[1])).mean(1),
            "timestep": lambda dims: t.float(),
            "guidance": lambda dims: torch.full((len(x),), 3.5, device=x.device),
            "img_ids": lambda dims: _image_ids(x),
            "txt_ids": lambda dims: torch.zeros(16, 3, device=x.device),
        }
        return tuple(made[io.name](io.dims) for io in self.spec.inputs)

    def noised(self, x0: Tensor, noise: Tensor, rng: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        """A random point of the path: (x_t, t in (0, 1), noise - x0)."""
        t = torch.sigmoid(torch.randn(len(x0), generator=rng, device=x0.device))
        s = t[:, None, None, None]
        return (1 - s) * x0 + s * noise, t, noise - x0

    def sample(self, predict: Predict, noise: Tensor, labels: Tensor, steps: int) -> Tensor:
        """Pictures [B, 4, H, W] from noise."""
        times = torch.linspace(1, 0, steps + 1).tolist()
        x = noise
        for now, then in itertools.pairwise(times):
            x = x + (then - now) * predict(x, torch.full((len(x),), now, device=x.device), labels)
        return x.clamp(-1, 1)

    def output(self, y: Tensor) -> Tensor:
        """The model's output as [B, 4, H, W]."""
        b, half = len(y), scenes.SIZE // 2
        y = y.view(b, half, half, 4, 2, 2)
        return y.permute(0, 3, 1, 4, 2, 5).reshape(b, 4, scenes.SIZE, scenes.SIZE)


def _packed(x: Tensor) -> Tensor:
    """[B, 4, H, W] -> [B, H/2 * W/2, 16], as FLUX's pipeline packs latents."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


def _image_ids(x: Tensor) -> Tensor:
    half = scenes.SIZE // 2
    row, column = torch.meshgrid(torch.arange(half), torch.arange(half), indexing="ij")
    return torch.stack([torch.zeros_like(row), row, column], -1).reshape(-1, 3).float().to(x.device)


TASKS = {task.name: task for task in (UNetTask(), FluxTask())}
