"""Checkpoint or seed -> parameters one at a time, or a whole module in the memory of the model and one tensor."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
from torch import nn

from svdq_trt.artifact.tensor_file import FLOATS, TensorFile, check_finite, iter_sources
from svdq_trt.base.errors import ArtifactError, ShapeError, UsageError
from svdq_trt.base.progress import Progress
from svdq_trt.checkpoint.ahead import read_ahead
from svdq_trt.checkpoint.config_check import check_config
from svdq_trt.checkpoint.locate import Source, locate
from svdq_trt.checkpoint.names import find_tensors, refuse_other_files
from svdq_trt.checkpoint.random_weights import RandomWeights
from svdq_trt.models import ModelSpec


class Weights(Protocol):
    """A source of a model's parameters, one at a time: a checkpoint or a seed."""

    @property
    def names(self) -> tuple[str, ...]:
        """All parameters, in the order in which reading them is cheapest."""

    def read(self, name: str) -> torch.Tensor:
        """One parameter in its dtype in the model, contiguous, on the CPU. Safe to call from several threads."""


def load(
    spec: ModelSpec,
    checkpoint: str | None = None,
    random_seed: int | None = None,
    progress: Progress | None = None,
) -> nn.Module:
    """Load the model with its weights, in eval mode and the dtypes of ModelSpec.weight_dtype, on the CPU.

    Args:
        spec: which model.
        checkpoint: diffusers folder, .safetensors file (diffusers' or the original names) or hub id; None
            means the model's own hub id, unless `random_seed` is given.
        random_seed: make weights from this seed instead (see random_weights.py).
        progress: called with (tensors done, all tensors, name).

    Raises:
        UsageError: both or neither of `checkpoint` and `random_seed`, for a model that is published nowhere.
        ArtifactError: files missing, malformed, truncated, not safetensors, or with NaN or Inf in them.
        ShapeError: tensors missing, left over, or of another shape than the model's.
    """
    module = spec.build()
    weights = open_weights(spec, checkpoint, random_seed)
    sizes = {name: parameter.nbytes for name, parameter in module.named_parameters()}
    with read_ahead(weights.read, [(name, sizes[name]) for name in weights.names]) as read:
        for done, name in enumerate(weights.names, 1):
            set_parameter(module, name, read(name))
            if progress:
                progress(done, len(weights.names), name)
    return module


def open_weights(spec: ModelSpec, checkpoint: str | None = None, random_seed: int | None = None) -> Weights:
    """Open the model's parameters, checked by name and shape but not read yet. Arguments and errors as `load`."""
    if checkpoint is not None and random_seed is not None:
        raise UsageError("--checkpoint", "given together with --random-weights", "one of them")
    if random_seed is not None:
        return RandomWeights(spec, spec.build(), random_seed)
    source = locate(spec, checkpoint)
    if source.config is not None:
        check_config(spec, source.config)
    return CheckpointWeights(spec, source)


class CheckpointWeights:
    """Parameters in safetensors files. A parameter that has its dtype on disk is a view of the mapped file."""

    def __init__(self, spec: ModelSpec, source: Source) -> None:
        self._spec = spec
        self._files = {name: file for file, name in iter_sources(source.files)}
        self._where = str(source.files[0] if len(source.files) == 1 else source.files[0].parent)
        _check_index(source, self._files, self._where)
        self._tables = {name: table for table in spec.tables for name in table.parameters}
        params = {name: tuple(p.shape) for name, p in spec.build().named_parameters()}
        published = {n: s for n, s in params.items() if n not in self._tables} | {t.name: t.shape for t in spec.tables}
        shapes = {name: file.shape(name) for name, file in self._files.items()}
        found = find_tensors(spec, published, shapes, self._where)
        self._rows = found.rows
        if unknown := found.rows.keys() - published.keys():
            refuse_other_files(spec, unknown, self._where)
        require_equal(self._where, published, self._rows, "that file's names" if found.original else "")
        for name, want in published.items():
            self._check_shape(name, shapes, want)
            self._check_dtype(name)
        self._params = tuple(params)

    def _check_shape(self, name: str, shapes: Mapping[str, tuple[int, ...]], want: tuple[int, ...]) -> None:
        """Raise ShapeError unless the rows that make up a tensor have its shape together."""
        rows, found = self._rows[name], [shapes[part.name] for part in self._rows[name]]
        got = (sum(part.stop - part.start for part in rows), *found[0][1:]) if found[0] else ()
        if got != want or any(shape[1:] != want[1:] for shape in found):
            raise ShapeError(f"{self._where}: '{rows[0].name}'", f"shape {list(got)}", f"{list(want)}")

    def _check_dtype(self, name: str) -> None:
        """Raise ArtifactError for weights that are no floats: they are quantized."""
        for part in self._rows[name]:
            file = self._files[part.name]
            if (kind := file.kind(part.name)) not in FLOATS:
                where, fix = f"{file.path}: '{part.name}'", "Use an unquantized checkpoint."
                raise ArtifactError(where, f"dtype {kind}", "floats", fix)

    @property
    def names(self) -> tuple[str, ...]:
        """All parameters, file by file in the files' own order: each is mapped once and read from front to back."""

        def place(name: str) -> tuple[str, str, int]:
            first = self._rows[self._published(name)][0]
            return str(self._files[first.name].path), first.name, first.start

        return tuple(sorted(self._params, key=place))

    def read(self, name: str) -> torch.Tensor:
        """One parameter; raises ArtifactError for NaN, Inf, or a file that became unreadable."""
        parts = []
        for rows in self._rows[self._published(name)]:
            file = self._files[rows.name]
            parts.append(file.read(rows.name, self._spec.weight_dtype(name), (rows.start, rows.stop)))
            check_finite(f"{file.path}: '{rows.name}'", parts[-1])
        tensor = parts[0] if len(parts) == 1 else torch.cat(parts)
        table = self._tables.get(name)
        return tensor if table is None else table.split(f"{self._where}: '{table.name}'", tensor)[name]

    def _published(self, name: str) -> str:
        """The tensor in the checkpoint that has a parameter."""
        return self._tables[name].name if name in self._tables else name


def require_equal(where: str, want: Iterable[str], got: Iterable[str], note: str = "") -> None:
    """Raise ShapeError unless `got` are the names that are wanted; `note`: what was converted to them."""
    want, got = set(want), set(got)
    for kind, names in (("missing", want - got), ("unknown", got - want)):
        if names:
            listed = ", ".join(sorted(names)[:3]) + (", ..." if len(names) > 3 else "")
            raise ShapeError(
                where,
                f"{len(names)} {kind} of {len(want)} tensors ({listed})",
                "exactly the model's tensors",
                f"Compared after converting {note}." if note else "",
            )


def _check_index(source: Source, found: dict[str, TensorFile], where: str) -> None:
    for name, file_name in (source.index or {}).items():
        if name not in found or found[name].path.name != file_name:
            raise ArtifactError(where, f"'{name}' is not in {file_name}", "the tensor where the index says")


def set_parameter(module: nn.Module, name: str, value: torch.Tensor) -> None:
    """Replace a (meta) parameter by `value`, without a copy."""
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, nn.Parameter(value, requires_grad=False))
