"""The parts of manifest.json about a graph, its plan, and what runs the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from svdq_trt.artifact.entry import COUNT, DIGEST, Chunks, Entry, FileEntry, says
from svdq_trt.contract.step_cache import PIECES


class BackendEntry(Entry, frozen=True):
    """The TensorRT that wrote the plan."""

    name: Annotated[str, says("tensorrt-rtx or tensorrt")]
    version: Annotated[str, says("its release; the plan loads in no other")]


class PluginEntry(Entry, frozen=True):
    """The plugin library beside the plan."""

    file: Annotated[str, says("its name in the folder")]
    version: Annotated[str, says("its release; the plan needs the same")]
    sha256: Annotated[str, says("its digest", **DIGEST)]
    embedded: Annotated[bool, says("the plan carries it as well, as those of earlier releases do")] = False
    platform: Annotated[str, says("what runs it: linux-x86_64; empty where an earlier release built")] = ""
    archs: Annotated[tuple[str, ...], says("GPUs that it has machine code for: sm_89; none where unknown")] = ()


class PlanEntry(Entry, frozen=True):
    """The plan."""

    file: Annotated[str, says("its name in the folder; empty for one in pieces")]
    bytes: Annotated[int, says("its size; of one in pieces, that of all", **COUNT)]
    sha256: Annotated[str, says("its digest; empty for one in pieces", **DIGEST)]
    weight_streaming: Annotated[bool, says("weights may stay in host memory, see Session's weight_budget")] = False
    pieces: Annotated[tuple[FileEntry, ...], says("with --step-cache, in its place: plans of head, tail and end")] = ()
    chunks: Chunks = ()

    def __post_init__(self) -> None:
        _check_pieces(self.pieces)

    @classmethod
    def of(cls, file: FileEntry, weight_streaming: bool) -> PlanEntry:
        """The entry of a plan in one file."""
        return cls(file.file, file.bytes, file.sha256, weight_streaming, chunks=file.chunks)


class OnnxEntry(Entry, frozen=True):
    """The graph that the plan was built from."""

    file: Annotated[str, says("its name in the folder")]
    bytes: Annotated[int, says("its size, external data included", **COUNT)]
    sha256: Annotated[str, says("its digest, without the data; empty where an earlier release built", **DIGEST)] = ""
    data: Annotated[FileEntry | None, says("the external data beside it: the weights")] = None
    pieces: Annotated[
        tuple[FileEntry, ...], says("with --step-cache, beside it: graphs of head, tail and end, with the same data")
    ] = ()

    def __post_init__(self) -> None:
        _check_pieces(self.pieces)


def _check_pieces(pieces: tuple[FileEntry, ...]) -> None:
    """Raise ValueError unless these are all pieces in their order, or none."""
    names = [Path(piece.file).stem for piece in pieces]
    if names and names != [*PIECES]:
        raise ValueError(f"pieces {' '.join(names)[:80]}, not {' '.join(PIECES)}")
