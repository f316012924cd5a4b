"""Tasks: a model of svdq_trt.models trained and sampled on the scenes: its inputs, its target, its sampler.

Both learn the velocity of the straight path x_t = (1 - t) x_0 + t noise from picture to noise, and are sampled by
Euler steps along it. (SDXL's own target, the noise, gives next to no weight to the noisiest steps, which decide the
shape: a short training with it produced the right colours and arbitrary shapes.)
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Protocol

import torch
from torch import Tensor

from svdq_trt.models import ModelSpec, TensorIO, get_model
from svdq_trt.models.flux import image_ids
from trained import scenes

Predict = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x_t [B, 4, H, W], t [B], labels [B]) -> [B, 4, H, W]
PIXELS = 8 * scenes.SIZE  # a latent has an eighth of the picture's side; here the latent is the picture


class Task(Protocol):
    """A model between pictures [B, 4, H, W], steps t [B] in (0, 1] and labels [B]."""

    @property
    def name(self) -> str:
        """Name of the model."""

    @property
    def spec(self) -> ModelSpec:
        """The model's spec."""

    def inputs(self, x: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """Inputs of the wrapped model, all f32."""

    def output(self, y: Tensor) -> Tensor:
        """Turn its output into [B, 4, H, W]."""


def noised(x0: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A random point on the path: (x_t, t, target). All t alike: at so few pixels the first steps decide the shape."""
    noise = torch.randn_like(x0)
    t = torch.rand(len(x0), device=x0.device)
    s = t[:, None, None, None]
    return (1 - s) * x0 + s * noise, t, noise - x0


def sample(predict: Predict, noise: Tensor, labels: Tensor, steps: int) -> Tensor:
    """Sample pictures [B, 4, H, W] from noise."""
    x = noise
    for now, then in itertools.pairwise(torch.linspace(1, 0, steps + 1).tolist()):
        x = x + (then - now) * predict(x, torch.full((len(x),), now, device=x.device), labels)
    return x.clamp(-1, 1)


@dataclass(frozen=True)
class UNetTask:
    """sdxl-tiny."""

    name: str = "sdxl-tiny"

    @property
    def spec(self) -> ModelSpec:
        """The spec of sdxl-tiny."""
        return get_model(self.name)

    def inputs(self, x: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """Inputs of the UNet, which counts its steps to 1000."""
        ios = {io.name: io for io in self.spec.inputs}
        text = scenes.embedding(labels, 77, _width(ios["encoder_hidden_states"]))
        pooled = scenes.embedding(labels, 2, _width(ios["text_embeds"])).mean(1)
        return x, 1000 * t, text, pooled, _size(x.device).expand(len(x), 6)

    def output(self, y: Tensor) -> Tensor:
        """The output as it is."""
        return y


def _width(io: TensorIO) -> int:
    """Of an input's last dimension, which is fixed."""
    width = io.dims[-1]
    assert isinstance(width, int)
    return width


@functools.cache
def _size(device: torch.device) -> Tensor:
    return torch.tensor([PIXELS, PIXELS, 0, 0, PIXELS, PIXELS], dtype=torch.float32, device=device)


@dataclass(frozen=True)
class FluxTask:
    """flux1-tiny at twice its width, 3 + 4 blocks."""

    name: str = "flux1-tiny"

    @property
    def spec(self) -> ModelSpec:
        """The spec of the wider flux1-tiny."""
        spec = get_model(self.name)
        wider = {"num_attention_heads": 4, "num_layers": 3, "num_single_layers": 4}
        return replace(spec, config=MappingProxyType({**spec.config, **wider}))

    def inputs(self, x: Tensor, t: Tensor, labels: Tensor) -> tuple[Tensor, ...]:
        """Inputs of the transformer, with packed latents."""
        made: dict[str, Callable[[TensorIO], Tensor]] = {
            "hidden_states": lambda io: _packed(x),
            "encoder_hidden_states": lambda io: scenes.embedding(labels, 16, _width(io)),
            "pooled_projections": lambda io: scenes.embedding(labels, 2, _width(io)).mean(1),
            "timestep": lambda io: t,
            "guidance": lambda io: torch.full((len(x),), 3.5, device=x.device),
            "img_ids": lambda io: _image_ids(scenes.SIZE // 2, x.device),
            "txt_ids": lambda io: torch.zeros(16, 3, device=x.device),
        }
        return tuple(made[io.name](io) for io in self.spec.inputs)

    def output(self, y: Tensor) -> Tensor:
        """Undo the packing of the output."""
        b, half = len(y), scenes.SIZE // 2
        y = y.view(b, half, half, 4, 2, 2)
        return y.permute(0, 3, 1, 4, 2, 5).reshape(b, 4, scenes.SIZE, scenes.SIZE)


def _packed(x: Tensor) -> Tensor:
    """[B, 4, H, W] -> [B, H/2 * W/2, 16], as FLUX's pipeline packs latents."""
    b, c, h, w = x.shape
    return x.view(b, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(b, h * w // 4, 4 * c)


@functools.cache
def _image_ids(side: int, device: torch.device) -> Tensor:
    return image_ids(side, side).to(device)


TASKS: dict[str, Task] = {task.name: task for task in (UNetTask(), FluxTask())}
