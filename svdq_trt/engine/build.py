"""ONNX -> plan: parse, one profile, build, stream to disk. Knows TensorRT; knows neither torch nor models."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svdq_trt.artifact.entry import FileEntry
from svdq_trt.artifact.manifest import TensorProfile
from svdq_trt.base.errors import SvdqError
from svdq_trt.base.files import Digests, atomic_write
from svdq_trt.base.progress import Progress
from svdq_trt.engine.backend import Backend
from svdq_trt.engine.last_errors import LastErrors
from svdq_trt.engine.plugin_layers import EngineLayer, LayerReport, network_plugins


@dataclass(frozen=True)
class PlanInfo:
    """A finished plan: its file's entry, the nodes that became plugin layers, and all compiled layers."""

    file: FileEntry
    plugin_layers: list[str]
    notes: dict[str, Any]
    layers: list[EngineLayer]


def build_plan(
    backend: Backend,
    onnx: Path,
    arch: int,
    profiles: list[TensorProfile],
    plan: Path,
    progress: Progress,
    weight_streaming: bool = False,
) -> PlanInfo:
    """Build `onnx` for sm_<arch> and write `plan` (complete or not at all).

    Args:
        weight_streaming: a session may keep weights in host memory, as many as its budget leaves no room for.

    Raises:
        SvdqError: the parser or the builder failed; carries TensorRT's own last error.
    """
    trt = backend.module
    logger = _make_logger(trt)
    builder = trt.Builder(logger)
    typed = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)  # absent where all networks are
    flags = 0 if typed is None else 1 << int(typed)
    network = builder.create_network(flags)
    parser = trt.OnnxParser(network, logger)
    if not parser.parse_from_file(str(onnx)):
        texts = [parser.get_error(i).desc() for i in range(parser.num_errors)]
        raise SvdqError(
            str(onnx),
            str(logger.errors) or "; ".join(texts) or "not parsed",
            f"a graph that {backend.name} {backend.version} takes",
        )

    plugins = network_plugins(trt, network)
    config = builder.create_builder_config()
    backend.set_target(config, arch)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    profile = builder.create_optimization_profile()
    for tensor in profiles:
        profile.set_shape(tensor.name, tensor.min, tensor.opt, tensor.max)
    if config.add_optimization_profile(profile) < 0:
        raise SvdqError(str(onnx), str(logger.errors) or "profile refused", "shapes that fit the graph's inputs")
    if weight_streaming:
        config.set_flag(trt.BuilderFlag.WEIGHT_STREAMING)
    monitor = _make_monitor(trt, progress)
    config.progress_monitor = monitor

    with atomic_write(plan) as tmp, tmp.open("wb") as file:
        writer = _make_writer(trt, file)
        done = builder.build_serialized_network_to_stream(network, config, writer)
        if writer.error is not None:
            raise writer.error
        if not done:
            raise SvdqError(f"sm_{arch}: {onnx.name}", str(logger.errors) or "build failed", "a graph that builds")
    file_entry = FileEntry(plan.name, writer.bytes, writer.digests.whole, writer.digests.chunks)
    return PlanInfo(file_entry, logger.report.plugin_nodes(plugins), logger.notes, logger.report.layers)


def _make_logger(trt: Any) -> Any:
    class Logger(trt.ILogger):
        """Logger that prints (into the stage's log) and keeps the last errors and TensorRT's own memory figures."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors = LastErrors()
            self.notes: dict[str, int] = {}
            self.report = LayerReport()

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.INFO:
                print(f"[{str(severity).rpartition('.')[2]}] {message}", flush=True)
            if severity <= trt.ILogger.ERROR:
                self.errors.add(message)
            self.report.feed(message)
            for name, pattern in _MEMORY_NOTES.items():
                if match := re.search(pattern, message):
                    self.notes[name] = int(match[1])

    return Logger()


_SHARES = 1000  # steps of the progress that is shown
#: figures that TensorRT states only in its log
_MEMORY_NOTES = {
    "activations": r"Total Activation Memory: (\d+)",
    "weights": r"Total Weights Memory: (\d+)",
}


def _make_monitor(trt: Any, progress: Progress) -> Any:
    class Monitor(trt.IProgressMonitor):
        """Progress monitor that names the innermost running phase and counts as the phases are nested."""

        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._phases = Phases()

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._phases.start(phase_name, parent_phase, num_steps)
            self._show(phase_name)

        def phase_finish(self, phase_name: str) -> None:
            self._phases.finish(phase_name)

        def step_complete(self, phase_name: str, step: int) -> bool:
            self._phases.complete(phase_name, step)
            self._show(phase_name)
            return True

        def _show(self, name: str) -> None:
            progress(round(self._phases.share * _SHARES), _SHARES, name)

    return Monitor()


class Phases:
    """Phases of a build, a phase inside one step of its parent: what share of the outermost is done.

    Attributes:
        share: 0 to 1; it falls only where another outermost phase begins.
    """

    def __init__(self) -> None:
        self.share = 0.0
        self._running: dict[str, tuple[str | None, int, int]] = {}  # parent, steps, steps that are complete

    def start(self, name: str, parent: str | None, steps: int) -> None:
        """A phase begins."""
        if parent not in self._running or parent == name:
            self.share, parent = 0.0, None
        self._running[name] = parent, max(steps, 1), 0

    def complete(self, name: str, step: int) -> None:
        """Step number `step` of a phase is complete."""
        if name not in self._running:
            return
        parent, steps, done = self._running[name]
        self._running[name] = parent, steps, max(done, min(step + 1, steps))
        share = 0.0
        at: str | None = name
        while at in self._running:
            at, steps, done = self._running[at]
            share = min(1.0, (done + share) / steps)
        self.share = max(self.share, share)

    def finish(self, name: str) -> None:
        """A phase ends."""
        self._running.pop(name, None)


def _make_writer(trt: Any, file: Any) -> Any:
    class Writer(trt.IStreamWriter):
        """Stream writer that writes and digests the plan as it comes: it is never whole in memory."""

        def __init__(self) -> None:
            trt.IStreamWriter.__init__(self)
            self.digests, self.bytes = Digests(), 0
            self.error: OSError | None = None

        def write(self, data: Any) -> int:
            try:
                file.write(data)
            except OSError as error:  # an exception must not cross TensorRT's boundary
                self.error = error
                return 0
            self.digests.update(data)
            self.bytes += len(data)
            return len(data)

    return Writer()
