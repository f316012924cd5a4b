"""The two ways as files: a foreign checkpoint -> svdq.safetensors, and svdq.safetensors -> a foreign checkpoint."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from svdq_trt.artifact import svdq_file
from svdq_trt.artifact.svdq_file import Artifact
from svdq_trt.artifact.tensor_file import SAFETENSORS_DTYPES, stream_tensors
from svdq_trt.base.errors import ArtifactError, UsageError
from svdq_trt.base.files import atomic_write
from svdq_trt.checkpoint.load import Weights
from svdq_trt.interop.container import OWN_NAME, check_engine, files_of, open_reader
from svdq_trt.interop.linears_export import write_comfy, write_lite
from svdq_trt.interop.makers import OWN, maker_of
from svdq_trt.interop.nunchaku_export import write_nunchaku
from svdq_trt.interop.result import Exported
from svdq_trt.models import ModelSpec, get_model


@dataclass(frozen=True)
class Description:
    """What a quantized checkpoint is, from its header alone.

    Attributes:
        kind: the tool that wrote it. format: "int4" or "nvfp4", or any of ours for our own files.
        complete: whether it holds the whole model; else a 16-bit checkpoint has its other parameters.
    """

    kind: str
    format: str
    complete: bool = True


@dataclass(frozen=True)
class Report:
    """What a conversion did.

    Attributes:
        kept: linears in 16 bit that the model would quantize, with the reason. notes: one sentence each.
    """

    kind: str
    format: str
    rank: int
    nodes: int
    kept: dict[str, str]
    notes: tuple[str, ...]


def describe(path: Path, spec: ModelSpec) -> Description:
    """Which tool wrote the checkpoint, and its number format. Raises ArtifactError: nothing known."""
    reader = open_reader(spec, path)
    maker = maker_of(reader)
    if maker is None:
        (path,) = files_of(spec, path)[0]
        nodes = [n for n in svdq_file.read_nodes(path) if n.format != "w4a16"]
        if not nodes:
            raise ArtifactError(str(path), "no node with quantized activations", "a quantized model")
        return Description(OWN, nodes[0].format)
    scales = [name for name in reader.names if name.endswith((".wscales", ".weight_scale"))]
    fp4 = any(reader.kind(name) == "F8_E4M3" for name in scales)
    return Description(maker.name, "nvfp4" if fp4 else "int4", maker.complete)


def import_checkpoint(path: Path, spec: ModelSpec, out: Path, rest: Weights | None = None) -> Report:
    """Write the artifact of a foreign checkpoint to `out`; under its final name only when complete.

    Args:
        rest: a 16-bit checkpoint of the model, for files that have quantized layers alone.

    Raises:
        ArtifactError, ShapeError, RangeError, UnsupportedError: naming what does not fit.
    """
    reader = open_reader(spec, path)
    maker = maker_of(reader)
    if maker is None:
        raise ArtifactError(
            str(path),
            "our own artifact",
            "another tool's checkpoint",
            "Give it to svdq-trt build --quantized as it is.",
        )
    done = maker.read(reader, spec, rest)
    done.meta["imported_from"] = maker.name
    svdq_file.save_streamed(out, done.tensors, done.tensors.__getitem__, done.meta, done.nodes)
    return Report(maker.name, done.meta["format"], done.meta["rank"], len(done.nodes), done.kept, tuple(done.notes))


#: maker -> what writes its checkpoint; a maker of files beside the tensors has a folder
WRITERS: dict[str, Callable[[Artifact, ModelSpec], Exported]] = {
    "nunchaku": write_nunchaku,
    "nunchaku-lite": write_lite,
    "comfy-kitchen": write_comfy,
}


def export_checkpoint(path: Path, out: Path, maker: str) -> Report:
    """Write an artifact, or that of an engine folder, as another tool's checkpoint: a file, or a diffusers folder.

    Args:
        maker: "nunchaku", "nunchaku-lite" (`out` is a folder) or "comfy-kitchen".

    Raises:
        ArtifactError: no artifact there. UnsupportedError: something that the maker's runtime has not.
        UsageError: `out` cannot be that folder.
    """
    check_engine(path)
    loaded = svdq_file.load(path / OWN_NAME if path.is_dir() else path)
    try:
        spec = get_model(str(loaded.meta.get("model")))
    except UsageError as error:
        raise ArtifactError(str(path), f"model {error.got}", error.want) from None
    done = WRITERS[maker](loaded, spec)
    if done.files:
        try:
            out.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError("--out", f"'{out}': {error.strerror}", "a folder that can be written") from None
    weights = out / "diffusion_pytorch_model.safetensors" if done.files else out
    shapes = {name: (SAFETENSORS_DTYPES[str(t.dtype)], tuple(t.shape)) for name, t in done.tensors.items()}
    stream_tensors(weights, shapes, lambda name: done.tensors[name].contiguous(), done.metadata)
    for name, text in done.files.items():
        with atomic_write(out / name) as tmp:
            tmp.write_text(text)
    fmt, rank = loaded.meta.get("format", ""), loaded.meta.get("rank", 0)
    return Report(maker, fmt, rank, len(loaded.nodes), {}, tuple(done.notes))
