"""Opening the model to quantize: its module with weights, or on meta with a way to read them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn

from svdq_trt.base.progress import Progress
from svdq_trt.build.stages.weights import Weights
from svdq_trt.checkpoint import load, open_weights
from svdq_trt.models import ModelSpec, get_model
from svdq_trt.models.recipe import Recipe

_STREAM_BYTES = 8 * 10**9  # of 16-bit weights


@dataclass(frozen=True)
class OpenModel:
    """A model to quantize: its module, with its weights, or on meta with `read` to get them from."""

    spec: ModelSpec
    module: nn.Module
    recipe: Recipe
    read: Callable[[str], Tensor] | None
    fp16_bytes: int


def open_model(weights: Weights, skip: tuple[str, ...], progress: Progress, stream: bool = False) -> OpenModel:
    """Open the model with its weights. Above _STREAM_BYTES, or on request, it is never whole in memory."""
    spec = get_model(weights.model)
    module = spec.build()
    fp16_bytes = sum(t.numel() * 2 for t in module.parameters())
    read = None
    if stream or fp16_bytes > _STREAM_BYTES:  # not by free memory: the same model gives the same bits everywhere
        read = open_weights(spec, weights.checkpoint, weights.random_weights).read
    else:
        module = load(spec, weights.checkpoint, weights.random_weights, progress)
    return OpenModel(spec, module, spec.recipe(module, skip), read, fp16_bytes)
