"""Inputs to calibrate on: synthetic ones, or the user's from a .safetensors file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch

from svdq_trt.checkpoint.tensors import TensorFile, check_finite
from svdq_trt.errors import ShapeError
from svdq_trt.models import Axis, ModelSpec
from svdq_trt.models.spec import SYMBOLS

Inputs = tuple[torch.Tensor, ...]


def synthetic(spec: ModelSpec, samples: int, height: int, width: int, seed: int) -> Iterator[Inputs]:
    """`samples` inputs of batch 1 in f32, from the noisiest step to the cleanest."""
    for i in range(samples):
        noise = 1 - (i + 0.5) / samples
        yield spec.example_inputs(
            batch=1, height=height, width=width, seed=seed * samples + i, dtype=torch.float32, noise=noise
        )


class InputFile:
    """A file with one tensor per model input, samples stacked in the first dimension where that is the batch.

    Inputs without a batch (FLUX's positions) are the same for all samples.

    Attributes:
        sizes: axis name -> symbol value, or the product of two where the axis has two.

    Raises:
        ArtifactError: unreadable, not floats, NaN or Inf.
        ShapeError: an input missing or unknown, or sizes that don't fit the model or each other.
    """

    def __init__(self, spec: ModelSpec, path: str | Path) -> None:
        path = Path(path)
        self.spec, self.file = spec, TensorFile(path)
        want, got = {io.name for io in spec.inputs}, set(self.file.names)
        if want != got:
            odd = min(want ^ got)
            raise ShapeError(
                str(path), f"{'no' if odd in want else 'unknown'} tensor '{odd}'", ", ".join(sorted(want))
            )
        self.sizes: dict[str, int] = {}
        for io in spec.inputs:
            self._match(f"{path}: '{io.name}'", io.dims, self.file.shape(io.name))
        self.samples = self.sizes["batch"]
        spec.check_sizes({**spec.profile.sizes(0), **{s: v for s, v in self.sizes.items() if s in SYMBOLS}})

    def _match(self, where: str, dims: tuple[int | Axis, ...], shape: tuple[int, ...]) -> None:
        """Learn each symbol from the first input that has it and hold the others to it."""
        text = ", ".join(str(d) if isinstance(d, int) else f"{d.name}/{d.divisor}" for d in dims)
        if len(shape) != len(dims):
            raise ShapeError(where, f"shape {list(shape)}", f"[{text.replace('/1', '')}]")
        for dim, size in zip(dims, shape, strict=True):
            if isinstance(dim, int):
                fits = size == dim
            else:
                fits = self.sizes.setdefault(dim.name, size * dim.divisor) == size * dim.divisor
            if not fits:
                raise ShapeError(
                    where, f"shape {list(shape)}", f"[{text.replace('/1', '')}], equal in all inputs"
                )

    def __iter__(self) -> Iterator[Inputs]:
        stacked = []
        batched = [isinstance(io.dims[0], Axis) and io.dims[0].symbol == "batch" for io in self.spec.inputs]
        for io in self.spec.inputs:
            stacked.append(self.file.read(io.name, torch.float32))
            check_finite(f"{self.file.path}: '{io.name}'", stacked[-1])
        for i in range(self.samples):
            yield tuple(t[i : i + 1] if one else t for t, one in zip(stacked, batched, strict=True))
