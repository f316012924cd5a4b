"""Calibration inputs: synthetic ones, or the user's from a .safetensors file."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

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
    """Join up to `size` inputs in a row along their batch axis; yields (how many, inputs).

    They have equal shapes, and what has no batch axis, as positions, is the same in all.
    """

    def alike(values: Inputs) -> list[Any]:
        return [t.shape if io.has_batch else t.tolist() for io, t in zip(spec.inputs, values, strict=True)]

    for _, source in itertools.groupby(inputs, key=alike):
        while part := list(itertools.islice(source, size)):
            columns = zip(spec.inputs, zip(*part, strict=True), strict=True)
            yield len(part), tuple(torch.cat(values) if io.has_batch else values[0] for io, values in columns)


def tensor_name(group: int, groups: int, name: str) -> str:
    """The name of an input in a file of `groups` sizes: its own where there is one size, else ``0.NAME`` and so on."""
    return name if groups == 1 else f"{group}.{name}"


class InputGroup:
    """Inputs of one size: those of a file that are stacked in one tensor per model input.

    Attributes:
        sizes: by name of the axis, "batch" among them: the number of samples.
    """

    def __init__(self, spec: ModelSpec, file: TensorFile, names: Mapping[str, str]) -> None:
        """Compare the shapes with the model's. `names`: input -> tensor in the file. Raises ShapeError."""
        self._spec, self._file, self._names = spec, file, names
        self.sizes: dict[str, int] = {}
        for io in (io for io in spec.inputs if io.name in names):
            self._match(f"{file.path}: '{names[io.name]}'", io.dims, file.shape(names[io.name]))
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
                fits = self.sizes.setdefault(dim.name, dim.value(size)) == dim.value(size)
            if not fits:
                raise ShapeError(where, f"shape {list(shape)}", f"[{text.replace('/1', '')}], equal in all inputs")
            if isinstance(dim, Axis) and (want := dim.misfit(size)):
                raise ShapeError(where, f"shape {list(shape)}", f"{want} for {dim.name} in place of {size}")

    def _read(self, io: TensorIO) -> torch.Tensor:
        """An input in f32, or as it is where the model takes no floats.

        Whole numbers may be where the model takes f32, as schedulers' timesteps are.
        """
        if io.name not in self._names:
            return io.left_out(self.sizes, torch.float32)
        name = self._names[io.name]
        if io.dtype not in ("act", "float32"):
            return self._file.read_stored(name).to(io.torch_dtype(torch.float32))
        if io.dtype == "float32" and self._file.kind(name) in ("I64", "I32", "I16", "U8"):
            return self._file.read_stored(name).float()
        return self._file.read(name, torch.float32)

    def __len__(self) -> int:
        return self.sizes["batch"]

    def __iter__(self) -> Iterator[Inputs]:
        stacked = []
        for io in self._spec.inputs:
            stacked.append(self._read(io))
            check_finite(f"{self._file.path}: '{self._names.get(io.name, io.name)}'", stacked[-1])
        for i in range(len(self)):
            yield tuple(t[i : i + 1] if io.has_batch else t for io, t in zip(self._spec.inputs, stacked, strict=True))


class InputFile:
    """A file with one tensor per model input, samples stacked in the first dimension (positions: not stacked).

    Inputs of several sizes, as prompts of their own length are, have such tensors for each: see tensor_name. What a
    call may leave out, such as a ControlNet's residuals, a file may as well.

    Attributes:
        groups: the inputs of each size. samples: their number.

    Raises:
        ArtifactError: unreadable, not floats, NaN or Inf.
        ShapeError: an input missing or unknown, or sizes that don't fit the model or each other.
    """

    def __init__(self, spec: ModelSpec, path: str | Path) -> None:
        file = TensorFile(Path(path))
        got = set(file.names)
        count = max(sum(name.rpartition(".")[2] == spec.inputs[0].name for name in got), 1)
        names = [
            {
                io.name: name
                for io in spec.inputs
                if (name := tensor_name(group, count, io.name)) in got or io.default is None
            }
            for group in range(count)
        ]
        want = {name for group in names for name in group.values()}
        if want != got:
            odd = min(want ^ got)
            raise ShapeError(str(path), f"{'no' if odd in want else 'unknown'} tensor '{odd}'", ", ".join(sorted(want)))
        self.groups = tuple(InputGroup(spec, file, group) for group in names)
        self.samples = sum(map(len, self.groups))

    def __iter__(self) -> Iterator[Inputs]:
        return itertools.chain.from_iterable(self.groups)
