"""AutoencoderKLQwenImage for pictures: its layers are those of videos, of which a picture is the first frame.

A causal convolution has nothing but zeros before the first frame, so of its kernel only the last slice in time counts,
and what joins frames does not run. What is left takes [B, C, H, W], with a third of the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from types import MethodType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn


def to_one_frame(model: Any) -> None:
    """Change an AutoencoderKLQwenImage for pictures: `decode` takes latents [B, C, H, W], `encode` pixels."""
    model._decode, model._encode = MethodType(_decode, model), MethodType(_encode, model)
    for parent in list(model.modules()):
        for name, layer in list(parent.named_children()):
            if make := _LAYERS.get(type(layer).__name__):
                setattr(parent, name, make(layer))


def _decode(model: Any, z: Tensor) -> Any:
    return SimpleNamespace(sample=model.decoder(model.post_quant_conv(z)).clamp(-1, 1))


def _encode(model: Any, x: Tensor) -> Tensor:
    moments: Tensor = model.quant_conv(model.encoder(x))
    return moments


class _Attention(nn.Module):
    """QwenImageAttentionBlock, its attention over all pixels written out: models/parts.py says why."""

    def __init__(self, block: Any) -> None:
        super().__init__()
        self.norm, self.to_qkv, self.proj = block.norm, block.to_qkv, block.proj

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] to the same."""
        query, key, value = self.to_qkv(self.norm(x)).flatten(2).chunk(3, dim=1)
        scores = (query * query.shape[1] ** -0.5).transpose(1, 2) @ key
        weights = scores.softmax(-1, dtype=torch.float32).to(x.dtype)
        mixed: Tensor = self.proj((value @ weights.transpose(1, 2)).reshape(x.shape))
        return x + mixed


def _convolution(layer: Any) -> nn.Module:
    left, _, top, *_ = layer._padding
    made = nn.Conv2d(
        layer.in_channels, layer.out_channels, layer.kernel_size[1:], layer.stride[1:], (top, left), device="meta"
    )
    made.weight, made.bias = nn.Parameter(layer.weight[:, :, -1].contiguous()), layer.bias
    return made


def _norm(layer: Any) -> nn.Module:
    layer.gamma = nn.Parameter(layer.gamma.reshape(-1, 1, 1))
    made: nn.Module = layer
    return made


#: class of a layer -> what makes of it one for pictures
_LAYERS: dict[str, Callable[[Any], nn.Module]] = {
    "QwenImageCausalConv3d": _convolution,
    "QwenImageRMS_norm": _norm,
    "QwenImageResample": lambda layer: layer.resample,
    "QwenImageUpsample": lambda _: nn.Upsample(scale_factor=2.0, mode="nearest"),  # the same pixels, without a cast
    "QwenImageAttentionBlock": _Attention,
}
