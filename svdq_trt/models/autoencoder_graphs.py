"""Graphs of the halves of an autoencoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from svdq_trt.models.autoencoder_config import latent_axes, latent_channels, pixel_axes, pixel_channels
from svdq_trt.models.part_graph import BATCH, PartGraph
from svdq_trt.models.spec import TensorIO


class DecoderGraph(PartGraph):
    """An autoencoder's decoder: latents to pixels from -1 to 1."""

    library = "diffusers"

    @staticmethod
    def inputs(config: Any, tokens: int) -> tuple[TensorIO, ...]:
        """Latents [B, C, H, W]."""
        return (TensorIO("latent", "act", (BATCH, latent_channels(config), *latent_axes(config))),)

    @staticmethod
    def outputs(config: Any, tokens: int) -> tuple[TensorIO, ...]:
        """Pixels [B, 3, H, W]."""
        return (TensorIO("image", "act", (BATCH, pixel_channels(config), *pixel_axes(config))),)

    def forward(self, latent: Tensor) -> Tensor:
        """Pixels."""
        image: Tensor = self.model.decode(latent, return_dict=False)[0]
        return image


class EncoderGraph(PartGraph):
    """An autoencoder's encoder: pixels from -1 to 1 to mean and log variance of the latents."""

    library = "diffusers"

    @staticmethod
    def inputs(config: Any, tokens: int) -> tuple[TensorIO, ...]:
        """Pixels [B, 3, H, W]."""
        return DecoderGraph.outputs(config, tokens)

    @staticmethod
    def outputs(config: Any, tokens: int) -> tuple[TensorIO, ...]:
        """Moments [B, 2C, H, W]."""
        return (TensorIO("moments", "act", (BATCH, 2 * latent_channels(config), *latent_axes(config))),)

    def forward(self, image: Tensor) -> Tensor:
        """Moments."""
        moments: Tensor = self.model.encode(image).latent_dist.parameters
        return moments


class NormalizedDecoderGraph(DecoderGraph):
    """FLUX.2's decoder, of latents as the denoiser has them: normalized in patches, by statistics in the weights.

    So the stand-in needs no weights: it tells the pipeline a mean of 0 and a deviation of 1.
    """

    def forward(self, latent: Tensor) -> Tensor:
        """Pixels."""
        mean, deviation = _statistics(self.model)
        return super().forward(_each_patch(latent, lambda patches: patches * deviation + mean))


class NormalizedEncoderGraph(EncoderGraph):
    """FLUX.2's encoder, to the moments of latents as NormalizedDecoderGraph takes them."""

    def forward(self, image: Tensor) -> Tensor:
        """Moments."""
        mean, deviation = _statistics(self.model)
        means, logs = super().forward(image).chunk(2, dim=1)
        means = _each_patch(means, lambda patches: (patches - mean) / deviation)
        return torch.cat((means, _each_patch(logs, lambda patches: patches - 2 * deviation.log())), dim=1)


class DCEncoderGraph(EncoderGraph):
    """AutoencoderDC's encoder: pixels to latents, of which it has no distribution."""

    @staticmethod
    def outputs(config: Any, tokens: int) -> tuple[TensorIO, ...]:
        """Latents [B, C, H, W]."""
        return DecoderGraph.inputs(config, tokens)

    def forward(self, image: Tensor) -> Tensor:
        """Latents."""
        latent: Tensor = self.model.encode(image).latent
        return latent


def _statistics(model: Any) -> tuple[Tensor, Tensor]:
    """Mean and deviation of the normalized latents, as `_each_patch` lays them out."""
    deviation = torch.sqrt(model.bn.running_var + model.config.batch_norm_eps)
    return model.bn.running_mean.reshape(-1, 1, 2, 1, 2), deviation.reshape(-1, 1, 2, 1, 2)


def _each_patch(latent: Tensor, change: Callable[[Tensor], Tensor]) -> Tensor:
    """`change` of latents [B, C, H, W] as patches of 2 x 2, [B, C, H / 2, 2, W / 2, 2]."""
    batch, channels, height, width = latent.shape
    return change(latent.reshape(batch, channels, height // 2, 2, width // 2, 2)).reshape(latent.shape)
