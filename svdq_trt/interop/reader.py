"""Reading tensors of untrusted files: every read states the shape and the dtypes that it expects."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from svdq_trt.artifact.tensor_file import TensorFile, check_finite, iter_sources
from svdq_trt.base.errors import ArtifactError, RangeError, ShapeError
from svdq_trt.models import ModelSpec

HALF = ("F16", "BF16")
FLOAT = ("F16", "BF16", "F32")
_DTYPES = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
#: relative change that a scale may undergo when the model's 16-bit dtype is not the file's: an ulp of bf16
_CONVERSION = 2.0**-7


class Reader:
    """All tensors of one checkpoint by name, in one file or several.

    Attributes:
        where: the path, for errors. metadata: the headers' strings.

    Raises:
        ArtifactError: an unreadable or malformed file, or a name in two files.
    """

    def __init__(self, where: Path, files: Sequence[Path]) -> None:
        self.where = where
        self._files: dict[str, TensorFile] = {name: file for file, name in iter_sources(tuple(files))}
        self.metadata: dict[str, str] = {}
        for file in {id(f): f for f in self._files.values()}.values():
            self.metadata.update(file.metadata())
        self._taken: set[str] = set()

    @property
    def names(self) -> tuple[str, ...]:
        """All names, sorted."""
        return tuple(sorted(self._files))

    def has(self, name: str) -> bool:
        """Whether there is a tensor of that name."""
        return name in self._files

    def kind(self, name: str) -> str:
        """Its dtype as safetensors names it. Raises ArtifactError: no such tensor."""
        return self._file(name).kind(name)

    def shape(self, name: str) -> tuple[int, ...]:
        """Its shape. Raises ArtifactError: no such tensor."""
        return self._file(name).shape(name)

    def take(self, name: str, kinds: Sequence[str], *shapes: tuple[int, ...]) -> Tensor:
        """The tensor as it is stored, once dtype and shape are one of those expected.

        Raises:
            ArtifactError: missing, or another dtype. ShapeError: another shape.
        """
        file = self._file(name)
        if (kind := file.kind(name)) not in kinds:
            raise ArtifactError(f"{self.where}: '{name}'", f"dtype {kind}", " or ".join(kinds))
        if (shape := file.shape(name)) not in shapes:
            want = " or ".join(str(list(s)) for s in shapes)
            raise ShapeError(f"{self.where}: '{name}'", f"shape {list(shape)}", want)
        self._taken.add(name)
        return file.read_stored(name)

    def take_finite(self, name: str, kinds: Sequence[str], *shapes: tuple[int, ...]) -> Tensor:
        """The tensor as from `take`; also raises ArtifactError for NaN or Inf."""
        tensor = self.take(name, kinds, *shapes)
        check_finite(f"{self.where}: '{name}'", tensor)
        return tensor

    def dtype(self, name: str) -> torch.dtype:
        """Torch's name for a float's dtype on disk. Raises ArtifactError unless it is a 16- or 32-bit float."""
        if (kind := self.kind(name)) not in _DTYPES:
            raise ArtifactError(f"{self.where}: '{name}'", f"dtype {kind}", "16- or 32-bit floats")
        return _DTYPES[kind]

    def take_half(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        """A float tensor in the model's 16-bit dtype. Raises as `take_finite` and `to_half`."""
        return to_half(f"{self.where}: '{name}'", self.take_finite(name, FLOAT, shape), dtype)

    def take_tables(self, spec: ModelSpec, left: dict[str, tuple[int, ...]]) -> dict[str, Tensor]:
        """The parameters that `spec` makes from tables of a checkpoint; they are taken out of `left`."""
        found: dict[str, Tensor] = {}
        for table in spec.tables:
            whole = self.take_half(table.name, table.shape, spec.torch_dtype)
            found |= table.split(f"{self.where}: '{table.name}'", whole)
            for name in table.parameters:
                del left[name]
        return found

    def refuse_leftovers(self, model: str) -> None:
        """Raise ShapeError naming tensors that nothing took: the file is for another model, or incompletely read."""
        if left := sorted(set(self._files) - self._taken):
            listed = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
            raise ShapeError(
                str(self.where),
                f"{len(left)} tensors that {model} has no place for ({listed})",
                f"a checkpoint of {model}",
            )

    def _file(self, name: str) -> TensorFile:
        if name not in self._files:
            raise ArtifactError(str(self.where), f"no tensor '{name}'", "a complete checkpoint of this model")
        return self._files[name]


def to_half(where: str, tensor: Tensor, dtype: torch.dtype, scale: bool = False) -> Tensor:
    """Convert to the model's 16-bit dtype; the tensor itself where it has it already.

    Args:
        scale: the values multiply: none may change by more than an ulp of bf16, or underflow.

    Raises:
        RangeError: a value overflows, or (scale) changes.
    """
    if tensor.dtype == dtype:
        return tensor
    out = tensor.to(dtype)
    name = str(dtype).removeprefix("torch.")
    if not bool(out.isfinite().all()):
        raise RangeError(where, f"values beyond {name}", f"values that fit {name}")
    if scale and bool(((out.float() - tensor.float()).abs() > _CONVERSION * tensor.float().abs()).any()):
        raise RangeError(where, f"values too small for {name}", f"values that fit {name}")
    return out
