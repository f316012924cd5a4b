"""``pipeline.json``: the engine folders and files that belong together, from a prompt to a picture.

It lies in the engine folder of the denoiser. The engines of the other parts are folders in it, each with a manifest of
its own; what a run reads besides (tokenizers, scheduler, configs) stands there as in the diffusers pipeline that it was
copied from.
"""

from __future__ import annotations

import json
from pathlib import Path, PurePosixPath
from typing import Annotated

import msgspec

from svdq_trt.artifact import manifest
from svdq_trt.artifact.entry import DIGEST, Entry, FileEntry, says
from svdq_trt.artifact.held import Held
from svdq_trt.artifact.manifest import Manifest
from svdq_trt.artifact.misfit import misfit
from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.files import atomic_write, read_json_object

NAME = "pipeline.json"
VERSION = 1
_AGAIN = "Build it again: svdq-trt build --pipeline."


class GraphEntry(Entry, frozen=True):
    """The graph of one engine: what stays the same when its plan is built elsewhere."""

    folder: Annotated[str, says("the engine's folder, . for the denoiser's", pattern=r"^(\.|\w+)$")]
    onnx: Annotated[str, says("digest of its model.onnx", **DIGEST)]
    data: Annotated[str, says("digest of its model.onnx.data", **DIGEST)]

    @classmethod
    def of(cls, folder: str, data: Manifest) -> GraphEntry:
        """The entry of an engine folder by its manifest."""
        return cls(folder, data.onnx.sha256, "" if data.onnx.data is None else data.onnx.data.sha256)


class PipelineFile(Entry, frozen=True, kw_only=True):
    """All of pipeline.json."""

    version: Annotated[int, says("of this schema")] = VERSION
    pipeline: Annotated[str, says("class of diffusers")]
    engines: Annotated[dict[str, GraphEntry], says("by component: unet, text_encoder, vae_decoder")]
    files: Annotated[tuple[FileEntry, ...], says("what a run reads besides, by paths in the folder")]

    @property
    def denoiser(self) -> str:
        """The component whose engine folder the file lies in; empty where it names none."""
        return next((name for name, entry in self.engines.items() if entry.folder == "."), "")

    def __post_init__(self) -> None:
        for entry in self.files:
            path = PurePosixPath(entry.file)
            if path.is_absolute() or ".." in path.parts or not path.name or "\0" in entry.file:
                raise ValueError(f"file {entry.file[:80]!r}")


def write(folder: Path, data: PipelineFile) -> Path:
    """Write the file into a denoiser's engine folder."""
    path = folder / NAME
    with atomic_write(path) as tmp:
        tmp.write_text(json.dumps(msgspec.to_builtins(data), indent=1) + "\n")
    return path


def read(folder: Path) -> PipelineFile:
    """Read the file. Raises ArtifactError: missing, not JSON, another version, or a field that no build writes."""
    path = folder / NAME
    if not path.is_file() and (folder / manifest.NAME).is_file():
        raise ArtifactError(
            str(folder), f"an engine without {NAME}", "the engines of a whole pipeline", "Build it with --pipeline."
        )
    data = {"version": None} | read_json_object(path, "a pipeline of engines")
    if data["version"] != VERSION:
        raise ArtifactError(str(path), f"version {data['version']!r}", str(VERSION), _AGAIN)
    try:
        return msgspec.convert(data, PipelineFile)
    except msgspec.ValidationError as error:
        raise misfit(str(path), str(error)) from None


def parts_in(folder: Path) -> list[str] | None:
    """Folders of the other parts in a denoiser's engine folder; None where it is no pipeline's. Raises as `read`."""
    if not (folder / NAME).exists():
        return None
    return [entry.folder for entry in read(folder).engines.values() if entry.folder != "."]


def verify(folder: Path) -> tuple[PipelineFile, dict[str, Manifest]]:
    """Check that the engines are those that the file names, by their manifests, and that the other files are.

    The engines' own files are compared with their manifests where they are read.

    Returns:
        the file, and the manifests by component.

    Raises:
        ArtifactError: an engine or a file that is missing or another one.
    """
    data = read(folder)
    manifests = {name: manifest.read(folder / entry.folder) for name, entry in data.engines.items()}
    for name, entry in data.engines.items():
        if GraphEntry.of(entry.folder, manifests[name]) != entry:
            raise ArtifactError(str(folder / entry.folder), f"another engine than {NAME}'s", f"its {name}", _AGAIN)
    for file in data.files:
        path = folder / file.file
        Held(path.name, file.bytes, file.sha256).check(path.parent, _AGAIN)
    return data, manifests
