"""Stage: model.onnx + plugin -> model.plan."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from svdq_trt.artifact.manifest import BackendEntry, Manifest, PlanEntry, PluginEntry, TensorProfile
from svdq_trt.base.progress import Progress
from svdq_trt.build.stage import File, Result, Stage

if TYPE_CHECKING:
    from svdq_trt.engine.backend import Backend
    from svdq_trt.engine.plugin_lib import PluginLibrary

FILE = "model.plan"


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
        plugin: library to embed, known by its digest; None for a graph without nodes of ours.
        profiles: range of every input. weight_streaming: see engine.build.build_plan.
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
    ) -> Plan:
        """The stage for an engine folder, from the model.onnx in it, whose key is `graph_id`."""
        onnx = File(graph_id, path=folder / "model.onnx")
        plugin = None if library is None else File(library.sha256, path=library.path)
        version = backend.version
        return cls(onnx, arch, backend.name, version, profiles, plugin, weight_streaming, out=folder / FILE)

    @property
    def label(self) -> str:
        """Label shown while it runs."""
        return f"plan      sm_{self.arch} {self.backend}"

    def run(self, progress: Progress) -> Planned:
        """Build the plan."""
        from svdq_trt.engine import plugin_lib
        from svdq_trt.engine.backend import select
        from svdq_trt.engine.build import build_plan

        backend, library = select(self.backend, self.arch), None if self.plugin is None else self.plugin.path
        if library is not None:
            progress(0, 1, "loading the plugin")
            plugin_lib.load_into(backend.module, library)
        profiles = list(self.profiles)
        info = build_plan(
            backend, self.onnx.path, self.arch, profiles, self.out, progress, library, self.weight_streaming
        )
        return Planned(
            PlanEntry(self.out.name, info.bytes, info.sha256, self.weight_streaming),
            BackendEntry(backend.name, backend.version),
            tuple(info.plugin_layers),
            info.notes,
        )


def with_plan(data: Manifest, planned: Planned, library: PluginLibrary | None) -> Manifest:
    """The manifest of an incomplete engine folder, completed with its new plan."""
    return msgspec.structs.replace(
        data,
        backend=planned.backend,
        plugin=None if library is None else plugin_entry(library, embedded=True),
        plan=planned.plan,
        incomplete="",
        plugin_layers=planned.plugin_layers,
        device_memory_bytes={kind: planned.memory.get(kind) for kind in ("weights", "activations")},
    )


def plugin_entry(library: PluginLibrary, embedded: bool) -> PluginEntry:
    """The plugin library, which lies beside the plan under its own name."""
    archs = tuple(f"sm_{arch}" for arch in library.archs)
    return PluginEntry(library.path.name, library.version, library.sha256, embedded, library.platform, archs)
