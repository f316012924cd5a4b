"""Calibration inputs: synthetic ones, or the user's from a .safetensors file."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch

from svdq_trt.artifact.tensor_file import TensorFile, check_finite
from svdq_trt.base.errors import ShapeError
from svdq_trt.models import Axis, ModelSpec, TensorIO
from svdq_trt.models.spec import SYMBOLS

Inputs = tuple[torch.Tensor, ...]


def synthetic(spec: ModelSpec, samples: int, height: int, width: int, seed: int) -> Iterator[Inputs]:
    """Yield `samples` inputs of batch 1 in f32, from the noisiest step to the cleanest."""
    for i in range(samples):
        noise = 1 - (i + 0.5) / samples
        yield spec.example_inputs(
            batch=1, height=height, width=width, seed=seed * samples + i, dtype=torch.float32, noise=noise
        )


def batches(spec: ModelSpec, inputs: Iterable[Inputs], size: int) -> Iterator[tuple[int, Inputs]]:
    """Join up to `size` inputs at a time along their batch axis; yields (how many, inputs).

    An input without a batch axis (positions) is the same for all and comes from the first.
    """
    source = iter(inputs)
    while part := list(itertools.islice(source, size)):
        columns = zip(spec.inputs, zip(*part, strict=True), strict=True)
        yield len(part), tuple(torch.cat(values) if has_batch(io) else values[0] for io, values in columns)


def has_batch(io: TensorIO) -> bool:
    """Whether an input has one entry per sample."""
    return isinstance(io.dims[0], Axis) and io.dims[0].symbol == "batch"


class InputFile:
    """A file with one tensor per model input, samples stacked in the first dimension (positions: not stacked).

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
            raise ShapeError(str(path), f"{'no' if odd in want else 'unknown'} tensor '{odd}'", ", ".join(sorted(want)))
        self.sizes: dict[str, int] = {}
        for io in spec.inputs:
            self._match(f"{path}: '{io.name}'", io.dims, self.file.shape(io.name))
        self.samples = self.sizes["batch"]
        spec.check_sizes({k: v for k, v in self.sizes.items() if k in SYMBOLS})

    def _match(self, where: str, dims: tuple[int | Axis, ...], shape: tuple[int, ...]) -> None:
        """Learn each symbol from the first input that has it and check the others against it."""
        text = ", ".join(str(d) if isinstance(d, int) else f"{d.name}/{d.divisor}" for d in dims)
        if len(shape) != len(dims):
            raise ShapeError(where, f"shape {list(shape)}", f"[{text.replace('/1', '')}]")
        for dim, size in zip(dims, shape, strict=True):
            if isinstance(dim, int):
                fits = size == dim
            else:
                fits = self.sizes.setdefault(dim.name, size * dim.divisor) == size * dim.divisor
            if not fits:
                raise ShapeError(where, f"shape {list(shape)}", f"[{text.replace('/1', '')}], equal in all inputs")
            if isinstance(dim, Axis) and (want := dim.misfit(size)):
                raise ShapeError(where, f"shape {list(shape)}", f"{want} for {dim.name} in place of {size}")

    def _read(self, io: TensorIO) -> torch.Tensor:
        """An input in f32; whole numbers where the model takes f32, as schedulers' timesteps are."""
        if io.dtype == "float32" and self.file.kind(io.name) in ("I64", "I32", "I16", "U8"):
            return self.file.read_stored(io.name).float()
        return self.file.read(io.name, torch.float32)

    def __iter__(self) -> Iterator[Inputs]:
        stacked = []
        for io in self.spec.inputs:
            stacked.append(self._read(io))
            check_finite(f"{self.file.path}: '{io.name}'", stacked[-1])
        for i in range(self.samples):
            yield tuple(t[i : i + 1] if has_batch(io) else t for io, t in zip(self.spec.inputs, stacked, strict=True))
