"""Comparing two models on the same inputs: engine folders in TensorRT or ONNX Runtime, ONNX files in ONNX Runtime."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from svdq_trt.artifact import manifest as manifests
from svdq_trt.artifact.entry import MAX_DIMS
from svdq_trt.artifact.manifest import Manifest, OutputEntry
from svdq_trt.artifact.tensor_file import TensorFile, check_finite
from svdq_trt.base.errors import ArtifactError, ShapeError, UsageError
from svdq_trt.evaluate.batches import divided
from svdq_trt.evaluate.metrics import compare_outputs
from svdq_trt.evaluate.runner import as_taken, outputs_of
from svdq_trt.runtime.choice import Opening, check_runtime, choose_runtime
from svdq_trt.runtime.shapes import check_inputs

#: dtypes of --inputs, as safetensors names them
_INPUT_KINDS = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2", "I64", "I32", "I8", "U8", "BOOL")


@dataclass(frozen=True)
class Subject:
    """One side of a comparison.

    Attributes:
        path: an engine folder or an .onnx file. manifest: the folder's, None for a file.
        where: "TensorRT" or "ONNX Runtime". note: why not TensorRT, where that might be expected.
    """

    path: Path
    manifest: Manifest | None
    where: str
    note: str = ""

    @property
    def in_tensorrt(self) -> bool:
        """Whether TensorRT runs it."""
        return self.where == "TensorRT"

    @property
    def label(self) -> str:
        """Label in tables: the file and its runtime."""
        if self.manifest is None:
            return f"{self.path} in {self.where}"
        plans = ", ".join(plan.file for plan in manifests.files_of(self.manifest.plan))
        return f"{self.path / (plans if self.in_tensorrt else 'model.onnx')} in {self.where}"


@dataclass
class Difference:
    """The result of a comparison.

    Attributes:
        outputs: figures per output. reference, candidate: outputs as f64. seconds: duration of each run.
    """

    outputs: list[OutputEntry]
    reference: dict[str, np.ndarray] = field(repr=False)
    candidate: dict[str, np.ndarray] = field(repr=False)
    seconds: tuple[float, float]

    @property
    def worst_db(self) -> float:
        """The lowest SQNR of all outputs."""
        return min(one.sqnr_db for one in self.outputs)


def subject(path: Path, runtime: str) -> Subject:
    """Determine what `path` is and where it will run.

    Args:
        path: an engine folder, its model.plan, or an .onnx file.
        runtime: "auto" (an engine folder in TensorRT where it has a plan and there is a GPU), "tensorrt", "onnx".

    Raises:
        ArtifactError: none of these. UnsupportedError: TensorRT is asked for, and there is no GPU or no plan.
    """
    check_runtime(runtime)
    if path.suffix == ".onnx":
        return Subject(path, None, "ONNX Runtime")
    folder = path.parent if path.name.endswith(".plan") else path
    if path.is_file() and folder == path:
        raise ArtifactError(str(path), "a file of another kind", "an engine folder, its model.plan, or an .onnx file")
    data = manifests.read(folder)
    in_tensorrt, note = choose_runtime(folder, data, runtime)
    return Subject(folder, data, "TensorRT" if in_tensorrt else "ONNX Runtime", note)


def compare_subjects(
    candidate: Subject, reference: Subject, feed: Mapping[str, np.ndarray], how: Opening, say: Callable[[str], None]
) -> Difference:
    """Run the reference, then the candidate, each opened for its own run only.

    Raises:
        SvdqError: a side that cannot be opened or run; outputs that differ in name or shape, or are not finite.
    """
    for one in (reference, candidate):
        check_feed(one, feed)
    results = []
    for one in (reference, candidate):
        say(f"running {one.label}")
        results.append(outputs_of(functools.partial(how.open, one.path, one.in_tensorrt), one.label, feed))
    (ref, ref_seconds), (got, got_seconds) = results
    figures = compare_outputs(ref, got, (reference.label, candidate.label))
    return Difference(figures, ref, got, (ref_seconds, got_seconds))


def check_feed(one: Subject, feed: Mapping[str, np.ndarray]) -> None:
    """Check that a side takes these inputs, before anything is opened. Raises ShapeError: names or shapes differ."""
    if one.manifest is not None:
        profiles = [tensor.profile for tensor in one.manifest.inputs]
        for part in divided(feed, profiles):
            check_inputs(profiles, as_taken(profiles, part))


# ---- inputs ----------------------------------------------------------------------------------------------------


def synthetic_inputs(
    subjects: Sequence[Subject], model: str | None, sizes: Mapping[str, int | None], seed: int, bound: str = "min"
) -> tuple[dict[str, np.ndarray], dict[str, int]]:
    """The model's example inputs in f32, and their sizes: `sizes`, else those of the engine's profile.

    Args:
        bound: "min", "opt" or "max" of the profile.

    Raises:
        UsageError: no side has a manifest and no model is named. ShapeError: a size that does not fit the model.
    """
    from svdq_trt.models import get_model

    data = next((s.manifest for s in subjects if s.manifest), None)
    name = model or (data.source if data else "")
    if not name:
        raise UsageError("svdq-trt diff", "two ONNX files", "to know the inputs", "Give --inputs FILE or --model NAME.")
    spec = get_model(name)
    own_sizes = spec.built_sizes(data, ("min", "opt", "max").index(bound))
    chosen = {s: sizes.get(s) or own for s, own in own_sizes.items()}
    import torch

    tensors = spec.example_inputs(**chosen, seed=seed, dtype=torch.float32)
    return {io.name: t.numpy() for io, t in zip(spec.inputs, tensors, strict=True)}, chosen


def read_inputs(path: Path) -> dict[str, np.ndarray]:
    """Tensors of a .safetensors file, named like the model's inputs; floats of 16 and 8 bits as f32.

    Raises:
        ArtifactError: unreadable, a dtype that no model takes, NaN or Inf. ShapeError: no tensors, or one of more
            dimensions than TensorRT has.
    """
    file = TensorFile(path)
    if not file.names:
        raise ShapeError(str(path), "no tensors", "one per model input")
    found = {}
    for name in file.names:
        where, kind = f"{path}: '{name}'", file.kind(name)
        if kind not in _INPUT_KINDS:
            raise ArtifactError(where, f"dtype {kind}", f"one of {', '.join(_INPUT_KINDS)}")
        if len(file.shape(name)) > MAX_DIMS:
            raise ShapeError(where, f"{len(file.shape(name))} dimensions", f"at most {MAX_DIMS}")
        tensor = file.read_stored(name)
        tensor = tensor if kind in ("F32", "F64") or not tensor.is_floating_point() else tensor.float()
        check_finite(where, tensor)
        found[name] = tensor.numpy()
    return found
