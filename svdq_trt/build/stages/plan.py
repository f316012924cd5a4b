"""Stage: model.onnx + plugin -> model.plan; or its pieces, and a plan of each."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from svdq_trt.artifact.graph_entries import BackendEntry, PlanEntry, PluginEntry
from svdq_trt.artifact.manifest import Manifest, TensorProfile
from svdq_trt.base.progress import Progress
from svdq_trt.build.stage import File, Result, Stage
from svdq_trt.contract.step_cache import PIECES

if TYPE_CHECKING:
    from svdq_trt.engine.backend import Backend
    from svdq_trt.engine.build import PlanInfo
    from svdq_trt.engine.plugin_lib import PluginLibrary

FILE = "model.plan"
#: with pieces, in its place
PIECE_FILES = tuple(f"{piece}.plan" for piece in PIECES)


@dataclass(frozen=True)
class Planned(Result):
    """The plan, the TensorRT that wrote it, its plugin layers, and TensorRT's own memory figures in bytes."""

    plan: PlanEntry
    backend: BackendEntry
    plugin_layers: tuple[str, ...]
    memory: dict[str, int]


@dataclass(frozen=True)
class Plan(Stage[Planned]):
    """A TensorRT engine for one arch.

    Attributes:
        arch: 89 for sm_89. backend, version: the TensorRT that builds.
        plugin: library of its ops, known by its digest; None for a graph without nodes of ours.
        profiles: range of every input. weight_streaming: see engine.build.build_plan.
        pieces: names of the graphs that lie beside `onnx`, a plan of each of which is wanted in the place of one.
    """

    name = "plan"
    result = Planned

    onnx: File
    arch: int
    backend: str
    version: str
    profiles: tuple[TensorProfile, ...]
    plugin: File | None
    weight_streaming: bool
    pieces: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        folder: Path,
        graph_id: str,
        arch: int,
        backend: Backend,
        profiles: tuple[TensorProfile, ...],
        library: PluginLibrary | None,
        weight_streaming: bool,
        pieces: tuple[str, ...] = (),
    ) -> Plan:
        """The stage for an engine folder, from the model.onnx in it, whose key is `graph_id`, or from its pieces."""
        onnx = File(graph_id, path=folder / "model.onnx")
        plugin = None if library is None else File(library.sha256, path=library.path)
        version = backend.version
        out = folder / (PIECE_FILES[0] if pieces else FILE)
        return cls(onnx, arch, backend.name, version, profiles, plugin, weight_streaming, pieces, out=out)

    @property
    def label(self) -> str:
        """Label shown while it runs."""
        return f"plan      sm_{self.arch} {self.backend}"

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the plans."""
        return PIECE_FILES if self.pieces else (FILE,)

    def run(self, progress: Progress) -> Planned:
        """Build the plan, or one of each piece, by the TensorRT that is named."""
        from svdq_trt.engine.backend import select

        return self.run_by(select(self.backend, self.arch), progress)

    def run_by(self, backend: Backend, progress: Progress) -> Planned:
        """Build by a TensorRT that is at hand."""
        from svdq_trt.build.piece_profiles import piece_profiles
        from svdq_trt.engine import plugin_lib
        from svdq_trt.engine.build import build_plan

        library = None if self.plugin is None else self.plugin.path
        if library is not None:
            progress(0, 1, "loading the plugin")
            plugin_lib.load_into(backend.module, library)

        def built(onnx: Path, profiles: list[TensorProfile], out: Path) -> PlanInfo:
            streaming = self.weight_streaming
            return build_plan(backend, onnx, self.arch, profiles, out, progress, weight_streaming=streaming)

        if not self.pieces:
            infos = [built(self.onnx.path, list(self.profiles), self.out)]
            plan = PlanEntry.of(infos[0].file, self.weight_streaming)
        else:
            graphs = [self.onnx.path.with_name(piece) for piece in self.pieces]
            outs = [self.folder / name for name in self.files]
            infos = [
                built(onnx, piece_profiles(onnx, self.profiles), out) for onnx, out in zip(graphs, outs, strict=True)
            ]
            files = tuple(info.file for info in infos)
            plan = PlanEntry("", sum(file.bytes for file in files), "", self.weight_streaming, files)
        layers = tuple(layer for info in infos for layer in info.plugin_layers)
        memory = memory_together([info.notes for info in infos])
        return Planned(plan, BackendEntry(backend.name, backend.version), layers, memory)


def memory_together(plans: Sequence[Mapping[str, int]]) -> dict[str, int]:
    """TensorRT's figures of all plans, in bytes: weights add up, memory for activations is shared (SharedActivations).

    A figure that one of them lacks is left out.
    """
    together: dict[str, Callable[[Iterable[int]], int]] = {"weights": sum, "activations": max}
    return {
        kind: of_all(plan[kind] for plan in plans)
        for kind, of_all in together.items()
        if all(kind in plan for plan in plans)
    }


def with_plan(data: Manifest, planned: Planned, library: PluginLibrary | None) -> Manifest:
    """The manifest of an incomplete engine folder, completed with its new plan."""
    return msgspec.structs.replace(
        data,
        backend=planned.backend,
        plugin=None if library is None else plugin_entry(library),
        plan=planned.plan,
        incomplete="",
        plugin_layers=planned.plugin_layers,
        device_memory_bytes={kind: planned.memory.get(kind) for kind in ("weights", "activations")},
    )


def plugin_entry(library: PluginLibrary) -> PluginEntry:
    """The plugin library, which lies beside the plan under its own name."""
    archs = tuple(f"sm_{arch}" for arch in library.archs)
    return PluginEntry(library.path.name, library.version, library.sha256, platform=library.platform, archs=archs)
