"""Runners for a pipeline's denoiser that are no engine."""

from __future__ import annotations

from collections.abc import Mapping
from types import SimpleNamespace

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
