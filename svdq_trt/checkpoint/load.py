"""Checkpoint or seed -> parameters one at a time, or a whole module in the memory of the model and one tensor."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol

import torch
from torch import nn

from svdq_trt.artifact.tensor_file import TensorFile, check_finite, iter_sources
from svdq_trt.base.errors import ArtifactError, ShapeError, UsageError
from svdq_trt.base.progress import Progress
from svdq_trt.checkpoint.config_check import check_config
from svdq_trt.checkpoint.ldm_keys import LDM_PREFIX, diffusers_names
from svdq_trt.checkpoint.locate import Source, locate
from svdq_trt.checkpoint.random_weights import RandomWeights
from svdq_trt.models import ModelSpec


class Weights(Protocol):
    """A source of a model's parameters, one at a time: a checkpoint or a seed."""

    @property
    def names(self) -> tuple[str, ...]:
        """All parameters, in the order in which reading them is cheapest."""

    def read(self, name: str) -> torch.Tensor:
        """One parameter in the model's act dtype, contiguous, on the CPU. Safe to call from several threads."""


def load(
    spec: ModelSpec,
    checkpoint: str | None = None,
    random_seed: int | None = None,
    progress: Progress | None = None,
) -> nn.Module:
    """Load the model with its weights, in eval mode and the act dtype, on the CPU.

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
    for done, name in enumerate(weights.names, 1):
        set_parameter(module, name, weights.read(name))
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
    """Parameters in safetensors files. A parameter that has the act dtype on disk is a view of the mapped file."""

    def __init__(self, spec: ModelSpec, source: Source) -> None:
        self._dtype = spec.torch_dtype
        self._found = {name: file for file, name in iter_sources(source.files)}
        where = str(source.files[0] if len(source.files) == 1 else source.files[0].parent)
        _check_index(source, self._found, where)
        names = diffusers_names(spec, self._found, where)
        self._old = {new: old for new, old in names.items() if new not in spec.derived}
        original = any(n.startswith(LDM_PREFIX) for n in self._found)
        params = dict(spec.build().named_parameters())
        _require_equal(where, params, self._old, "that file's names" if original else "")
        for name, old in self._old.items():
            got, want = self._found[old].shape(old), tuple(params[name].shape)
            if got != want:
                raise ShapeError(f"{where}: '{old}'", f"shape {list(got)}", f"{list(want)}")

    @property
    def names(self) -> tuple[str, ...]:
        """All parameters, file by file in the files' own order: each is mapped once and read from front to back."""
        order = sorted(self._old.items(), key=lambda kv: (str(self._found[kv[1]].path), kv[1]))
        return tuple(name for name, _ in order)

    def read(self, name: str) -> torch.Tensor:
        """One parameter; raises ArtifactError for NaN, Inf, or a file that became unreadable."""
        old = self._old[name]
        tensor = self._found[old].read(old, self._dtype)
        check_finite(f"{self._found[old].path}: '{old}'", tensor)
        return tensor


def _require_equal(where: str, want: Iterable[str], got: Iterable[str], note: str) -> None:
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
