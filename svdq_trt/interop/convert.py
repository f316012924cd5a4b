"""The two ways as files: a foreign checkpoint -> svdq.safetensors, and svdq.safetensors -> a nunchaku file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from svdq_trt.artifact import svdq_file
from svdq_trt.artifact.tensor_file import SAFETENSORS_DTYPES, stream_tensors
from svdq_trt.base.errors import ArtifactError, UsageError
from svdq_trt.interop.container import MODELOPT, OWN, OWN_NAME, check_engine, files_of, kind_of, open_reader
from svdq_trt.interop.nunchaku_export import write_nunchaku
from svdq_trt.interop.nunchaku_import import read_nunchaku
from svdq_trt.models import ModelSpec, get_model


@dataclass(frozen=True)
class Description:
    """What a quantized checkpoint is, from its header alone.

    Attributes:
        kind: the tool that wrote it. format: "int4" or "nvfp4", or any of ours for our own files.
    """

    kind: str
    format: str


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
    kind = kind_of(reader)
    if kind == OWN:
        (path,) = files_of(spec, path)[0]
        nodes = [n for n in svdq_file.read_nodes(path) if n.format != "w4a16"]
        if not nodes:
            raise ArtifactError(str(path), "no node with quantized activations", "a quantized model")
        return Description(kind, nodes[0].format)
    fp4 = kind == MODELOPT or any(n.endswith(".wscales") and reader.kind(n) == "F8_E4M3" for n in reader.names)
    return Description(kind, "nvfp4" if fp4 else "int4")


def import_checkpoint(path: Path, spec: ModelSpec, out: Path) -> Report:
    """Write the artifact of a foreign checkpoint to `out`; under its final name only when complete.

    Raises:
        ArtifactError, ShapeError, RangeError, UnsupportedError: naming what does not fit.
    """
    reader = open_reader(spec, path)
    kind = kind_of(reader)
    if kind == OWN:
        raise ArtifactError(
            str(path),
            "our own artifact",
            "another tool's checkpoint",
            "Give it to svdq-trt build --quantized as it is.",
        )
    if kind == MODELOPT:
        from svdq_trt.interop.modelopt import read_modelopt

        done = read_modelopt(reader, spec)
    else:
        done = read_nunchaku(reader, spec)
    done.meta["imported_from"] = kind
    svdq_file.save_streamed(out, done.tensors, done.tensors.__getitem__, done.meta, done.nodes)
    return Report(kind, done.meta["format"], done.meta["rank"], len(done.nodes), done.kept, tuple(done.notes))


def export_nunchaku(path: Path, out: Path) -> Report:
    """Write an artifact, or that of an engine folder, as a nunchaku file.

    Raises:
        ArtifactError: no artifact there. UnsupportedError: something that nunchaku cannot run.
    """
    check_engine(path)
    loaded = svdq_file.load(path / OWN_NAME if path.is_dir() else path)
    try:
        spec = get_model(str(loaded.meta.get("model")))
    except UsageError as error:
        raise ArtifactError(str(path), f"model {error.got}", error.want) from None
    done = write_nunchaku(loaded, spec)
    shapes = {name: (SAFETENSORS_DTYPES[str(t.dtype)], tuple(t.shape)) for name, t in done.tensors.items()}
    stream_tensors(out, shapes, lambda name: done.tensors[name].contiguous(), done.metadata)
    fmt, rank = loaded.meta.get("format", ""), loaded.meta.get("rank", 0)
    return Report("nunchaku", fmt, rank, len(loaded.nodes), {}, tuple(done.notes))
