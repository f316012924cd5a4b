"""The range of every size of a build, and what follows for a graph's inputs and outputs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from svdq_trt.artifact.manifest import TensorProfile
from svdq_trt.models import TensorIO


@dataclass(frozen=True)
class Sizes:
    """min, opt and max of every symbol of contract.sizes."""

    profile: dict[str, tuple[int, int, int]]

    def ranges(self) -> dict[str, tuple[int, int]]:
        """Smallest and largest value of every size, on which a graph depends."""
        return {symbol: (low, high) for symbol, (low, _, high) in self.profile.items()}

    def least(self) -> dict[str, int]:
        """Smallest value of every size."""
        return {symbol: low for symbol, (low, _, _) in self.profile.items()}

    def tensors(self, ios: Sequence[TensorIO], act: torch.dtype) -> tuple[TensorProfile, ...]:
        """Shape ranges of inputs or outputs of a graph whose act dtype is `act`."""
        return tuple(self._tensor(io, act) for io in ios)

    def _tensor(self, io: TensorIO, act: torch.dtype) -> TensorProfile:
        low, opt, high = (io.shape({symbol: values[i] for symbol, values in self.profile.items()}) for i in range(3))
        dtype = str(io.torch_dtype(act)).removeprefix("torch.")
        return TensorProfile(io.name, dtype, low, opt, high, io.axes)
