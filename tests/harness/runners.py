"""Runners for a pipeline's denoiser that are no engine."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from svdq_trt.checkpoint import load
from svdq_trt.models import ModelSpec


class TorchRunner:
    """The wrapped torch module of random weights, in f32.

    Attributes:
        calls: what it was given.
    """

    def __init__(self, spec: ModelSpec, seed: int) -> None:
        self.model, self.spec = spec.name, spec
        self.inputs = [SimpleNamespace(name=io.name, dtype="float32") for io in spec.inputs]
        self.flat = spec.wrap(load(spec, random_seed=seed).float())
        self.calls: list[dict[str, Tensor]] = []

    @torch.inference_mode()
    def run(self, inputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        self.calls.append(dict(inputs))
        return self.spec.run(self.flat, [inputs[io.name] for io in self.spec.inputs])


class CachedRunner(TorchRunner):
    """With a step cache that skips nothing.

    Attributes:
        caches: for each call, to which steps it was to be compared; None for a reset.
    """

    step_cache = 0.1

    def __init__(self, spec: ModelSpec, seed: int) -> None:
        super().__init__(spec, seed)
        self.caches: list[Any] = []

    def run(self, inputs: Mapping[str, Tensor], cache: Hashable = "") -> dict[str, Tensor]:
        self.caches.append(cache)
        return super().run(inputs)

    def reset(self) -> None:
        self.caches.append(None)
