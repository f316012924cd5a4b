"""Write a model and its one external data file, so that no half-written file ever has the final name."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Set
from pathlib import Path

import onnx
import onnx_ir as ir

from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.files import atomic_write
from svdq_trt.base.progress import Progress

ALIGN_BYTES = 4096  # alignment of tensors worth mapping; TensorRT and ONNX Runtime read them in place
INLINE_BYTES = 1024  # shapes and scalars stay in the .onnx, where a viewer shows them


def data_path(path: Path) -> Path:
    """Path of the data file: ``unet.onnx`` -> ``unet.onnx.data``."""
    return path.with_name(path.name + ".data")


def require_onnx_suffix(path: Path) -> None:
    """Raise ArtifactError for a path that does not end in .onnx."""
    if path.suffix != ".onnx":
        raise ArtifactError(str(path), f"suffix '{path.suffix}'", ".onnx")


def write_model(model: ir.Model, path: Path, progress: Progress | None = None) -> None:
    """Stream `model` to `path` and ``<path>.data``, check it, and only then give the files their names.

    Tensors go to the file one at a time, so the memory is the model's own. An older .onnx is removed first and
    the data file renamed before the new one, so that an interrupted call leaves nothing or everything.

    Args:
        model: the model; unchanged.
        path: ends in .onnx; the folder is made if missing.
        progress: called with (tensor number, tensors, "write") before each tensor.

    Raises:
        ArtifactError: the path has another suffix, or onnx.checker refuses the result.
    """
    require_onnx_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}-") as tmp:
        staged = Path(tmp) / path.name
        ir.save(
            model,
            staged,
            external_data=data_path(path).name,
            size_threshold_bytes=INLINE_BYTES,
            alignment=ALIGN_BYTES,
            align_threshold=ALIGN_BYTES,
            callback=_callback(progress),
        )
        data_path(staged).touch()  # a model without large tensors has an empty one: always two files
        check(staged)
        path.unlink(missing_ok=True)
        os.replace(data_path(staged), data_path(path))
        os.replace(staged, path)


def write_graph(model: ir.Model, path: Path, parameters: Set[str]) -> None:
    """Write only `path`: `parameters` have their places in a ``<path>.data`` that is not written.

    For a machine that has the weights but should not spend its time tracing. Constants are in the file.

    Args:
        model: the model; its parameters become external tensors without a file.
        path: ends in .onnx.
        parameters: initializers to leave out.
    """
    require_onnx_suffix(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    offset = 0
    for name, value in model.graph.initializers.items():
        tensor = value.const_value
        if name not in parameters or tensor is None:
            continue
        value.const_value = ir.ExternalTensor(
            data_path(path).name,
            offset,
            tensor.nbytes,
            tensor.dtype,
            shape=ir.Shape(tensor.shape.numpy()),
            name=name,
            base_dir=path.parent,
        )
        offset += -(-tensor.nbytes // ALIGN_BYTES) * ALIGN_BYTES
    with atomic_write(path) as tmp:
        tmp.write_bytes(ir.serde.serialize_model(model).SerializeToString())


def rewrite_beside(model: ir.Model, original: Path, kind: str) -> Path:
    """Save a changed graph as ``<stem>.<kind>.onnx`` beside `original`; see `save_beside`."""
    return save_beside(model, original, original.with_suffix(f".{kind}.onnx").name)


def save_beside(model: ir.Model, original: Path, name: str) -> Path:
    """Save a graph as `name` beside `original`, whose data file it reads; returns its path.

    Raises:
        ArtifactError: onnx.checker refuses it; no file is left then.
    """
    path = original.with_name(name)
    staged = path.with_name(f".{path.name}")
    staged.unlink(missing_ok=True)  # a link there would be followed
    try:
        ir.save(model, staged)  # external tensors keep their file, offset and length
        check(staged)
        staged.replace(path)
    finally:
        staged.unlink(missing_ok=True)
    return path


def check(path: Path) -> None:
    """Run onnx.checker's full check on a file.

    Raises:
        ArtifactError: the checker refuses it; carries its reason.
    """
    try:
        onnx.checker.check_model(path, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ArtifactError(path.name, f"onnx.checker says: {error}", "a valid graph") from error


def _callback(progress: Progress | None) -> Callable[[ir.TensorProtocol, object], None] | None:
    if progress is None:
        return None

    def call(_tensor: ir.TensorProtocol, info: object) -> None:
        progress(info.index + 1, info.total, "write")  # type: ignore[attr-defined]

    return call
