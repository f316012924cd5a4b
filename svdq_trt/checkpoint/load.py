"""Checkpoint or seed -> module in the act dtype on the CPU, in the memory of the model and one tensor."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from svdq_trt.checkpoint.config_check import check_config
from svdq_trt.checkpoint.ldm_keys import LDM_PREFIX, diffusers_names
from svdq_trt.checkpoint.locate import Source, locate
from svdq_trt.checkpoint.random_weights import fill_random
from svdq_trt.checkpoint.tensors import TensorFile, check_finite, iter_sources
from svdq_trt.errors import ArtifactError, ShapeError, UsageError
from svdq_trt.models import ModelSpec

Progress = Callable[[int, int, str], None]


def load(
    spec: ModelSpec,
    checkpoint: str | None = None,
    random_seed: int | None = None,
    progress: Progress | None = None,
) -> nn.Module:
    """The model with its weights, eval mode, act dtype, on the CPU.

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
    if checkpoint is not None and random_seed is not None:
        raise UsageError("--checkpoint", "given together with --random-weights", "one of them")
    if random_seed is not None:
        module = spec.build()
        fill_random(spec, module, random_seed, progress)
        return module
    source = locate(spec, checkpoint)
    if source.config is not None:
        check_config(spec, source.config)
    module = spec.build()
    _assign(spec, module, source, progress)
    return module


def _assign(spec: ModelSpec, module: nn.Module, source: Source, progress: Progress | None) -> None:
    found = {name: file for file, name in iter_sources(source.files)}
    where = str(source.files[0] if len(source.files) == 1 else source.files[0].parent)
    _check_index(source, found, where)
    names = diffusers_names(spec, found, where)
    original = any(n.startswith(LDM_PREFIX) for n in found)
    params = dict(module.named_parameters())
    _require_equal(where, params, names, "that file's names" if original else "")
    for name, old in names.items():
        got, want = found[old].shape(old), tuple(params[name].shape)
        if got != want:
            raise ShapeError(f"{where}: '{old}'", f"shape {list(got)}", f"{list(want)}")
    # File by file, in the files' own order: each is mapped once, and read from front to back.
    for done, (name, old) in enumerate(
        sorted(names.items(), key=lambda kv: (str(found[kv[1]].path), kv[1])), 1
    ):
        tensor = found[old].read(old, spec.torch_dtype)
        check_finite(f"{found[old].path}: '{old}'", tensor)
        set_parameter(module, name, tensor)
        if progress:
            progress(done, len(names), name)


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
