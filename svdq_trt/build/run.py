"""Running a build: the stages of every format, then links, plan and manifest per engine."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec
import psutil

from svdq_trt.artifact import manifest
from svdq_trt.artifact.manifest import Manifest
from svdq_trt.base import errors
from svdq_trt.base.files import own_folder
from svdq_trt.build import freshness
from svdq_trt.build.config import BuildConfig
from svdq_trt.build.execute import Costs, Execution
from svdq_trt.build.folder import copy_plugin, only_writer, place
from svdq_trt.build.given import no_attention
from svdq_trt.build.made import Made
from svdq_trt.build.manifest_data import manifest_of
from svdq_trt.build.pipeline import PartsBuild
from svdq_trt.build.plans import plan_engine
from svdq_trt.build.process import RssSampler
from svdq_trt.build.sharing import SharingRunner
from svdq_trt.build.stage import File
from svdq_trt.build.stages import compare, export, quantize
from svdq_trt.build.stages.allocate import Allocate
from svdq_trt.build.stages.calibrate import Calibrate
from svdq_trt.build.stages.compare import Compare
from svdq_trt.build.stages.export import Export
from svdq_trt.build.stages.lora import ApplyLoras
from svdq_trt.build.stages.quantize import Quantize
from svdq_trt.build.stages.reference_export import ReferenceExport
from svdq_trt.build.stages.run_onnx import RunQuantized, RunReference
from svdq_trt.build.stages.sample import Sample
from svdq_trt.build.stages.take_quantized import TakeQuantized
from svdq_trt.build.ui import Screen
from svdq_trt.build.work import Engine, Work, plan_work
from svdq_trt.contract.archs import ARM_HOSTS
from svdq_trt.engine import plugin_lib
from svdq_trt.engine.backend import available
from svdq_trt.quantize.preset import get_preset

#: free memory at which the FP16 export may run beside the quantizer: two copies of SDXL and their working memory
_ROOM_FOR_TWO_BYTES = 16 * 10**9
#: and what the quantizer takes of that, beside the export of a pipeline's part
_ROOM_BESIDE_PARTS_BYTES = 10 * 10**9


class _Inline(Executor):
    """An executor that runs what it is given at once, in the caller's thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run `fn` now; its exception is raised here."""
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@dataclass(frozen=True)
class Built:
    """One engine: its manifest, or why its plan is still missing."""

    engine: Engine
    manifest: Manifest
    incomplete: errors.IncompleteError | None
    parts: tuple[Manifest, ...] = ()  # with --pipeline: those beside the denoiser


class Build:
    """One run of a BuildConfig."""

    def __init__(self, config: BuildConfig, screen: Screen, runner: SharingRunner | None = None) -> None:
        """`runner` is that of the build that this one is a part of."""
        self.config, self.screen, self.runner = config, screen, runner or SharingRunner()
        self.work: Work = plan_work(config)
        self.execution = Execution(screen, self.runner, self.work.logs, config.force)
        self.costs = Costs()  # of stages that all formats share
        self.quantized: dict[str, Made] = {}  # by format, as its first graph had it made
        self.parts: PartsBuild | None = None
        self.encoders: dict[str, Build] = {}
        if (pipeline := self.work.pipeline) is not None:
            self.parts = PartsBuild(config, pipeline, self.work.shared, self.execution, self._place)
            self.encoders = {name: Build(one, screen, self.runner) for name, one in pipeline.quantized.items()}

    def run(self) -> list[Built]:
        """Build all engines, in the order asked for.

        Raises:
            SvdqError: the first stage that failed. Finished stages stay and are reused by the next run.
        """
        self._check_target()
        encoders = {name: one.run() for name, one in self.encoders.items()}
        with self._only_writer(*(engine.folder for engine in self.work.engines)):
            sampler = RssSampler(psutil.Process(), without=self.runner.fork_servers)
            try:
                with self.screen:
                    built = self._run(encoders)
            finally:
                peak = sampler.stop()
            return [self._with_peak(one, peak) for one in built]

    def quantize(self) -> dict[str, Made]:
        """Make the quantized model of each format, by its name, and nothing more. Raises as `run`."""
        with self._only_writer(), self.screen:
            inputs = self._inputs()
            return {fmt.name: self._quantize(fmt.name, inputs) for fmt in self.work.formats()}

    def _check_target(self) -> None:
        """Refuse, before any work, what would fail when the plans are built; a missing TensorRT only delays those."""
        available(self.config.backend)
        library = plugin_lib.find()
        for engine in self.work.engines:
            plugin_lib.require_arch(library, engine.arch)
            if engine.arch in ARM_HOSTS and not library.platform.endswith("aarch64"):
                finish = manifest.finish_command(engine.folder)
                self.screen.say(
                    f"sm_{engine.arch}: {ARM_HOSTS[engine.arch]}, and a plan of this machine carries a plugin library "
                    f"for {library.platform}. Install svdq-trt there, which compiles one, and build the plan: {finish}"
                )

    @contextmanager
    def _only_writer(self, *engines: Path) -> Iterator[None]:
        """Make the folders of the build, refusing links, and lock them."""
        for folder in (self.work.shared, *engines):
            own_folder(folder.parent, folder.name)
        with only_writer(self.work.shared, *engines):
            own_folder(self.work.shared, self.work.logs.name)
            yield

    def _run(self, encoders: Mapping[str, Sequence[Built]]) -> list[Built]:
        graphs = self.work.graphs().values()
        inputs = self._inputs()
        reference: Future[File] | None = None
        with self._side_by_side() as pool:
            beside: list[Future[Any]] = []
            if self.config.check:
                beside.append(reference := pool.submit(self._reference_graph))
            if self.parts is not None:
                beside.append(pool.submit(self.parts.graphs))
            for one in beside:
                one.add_done_callback(self._stop_if_failed)
            try:
                made = {engine.shared: self._graph(engine, inputs) for engine in graphs}
            except errors.SvdqError:
                for one in beside:
                    if one.done() and not one.cancelled():
                        one.result()
                raise
            for one in beside:
                one.result()
        # Sessions and the builder run alone: each may take most of the machine's memory.
        if reference is not None:
            outputs = self._reference_outputs(reference.result(), inputs)
            for engine in graphs:
                self._check(made[engine.shared], engine.format.name, engine.shared, outputs, inputs)
        return [
            self._engine(engine, made[engine.shared], {name: built[index] for name, built in encoders.items()})
            for index, engine in enumerate(self.work.engines)
        ]

    def _stop_if_failed(self, beside: Future[Any]) -> None:
        """Stop the main line at once: this failure is the one that is reported."""
        if not beside.cancelled() and beside.exception():
            self.runner.stop()

    @contextmanager
    def _side_by_side(self) -> Iterator[Executor]:
        """An executor for stages beside the main line, one at a time; in it where memory does not allow that.

        An error in either stops the other.
        """
        room = _ROOM_FOR_TWO_BYTES
        if self.parts is not None:
            room = max(room, _ROOM_BESIDE_PARTS_BYTES + self.parts.room_bytes)
        roomy = psutil.virtual_memory().available >= room
        pool: Executor = ThreadPoolExecutor(max_workers=1) if roomy else _Inline()
        try:
            yield pool
        except BaseException:
            self.runner.stop()
            raise
        finally:
            pool.shutdown(cancel_futures=True)

    # ---- one format --------------------------------------------------------------------------------------------

    def _inputs(self) -> File | None:
        """The file of calibration inputs, recorded in a pipeline if the config says so; None for synthetic inputs."""
        for note in self.work.identity.notes:
            self.screen.say(note)
        if self.config.sampling is None:
            return self.work.calibration
        sample = Sample.of(self.work, self.config.sampling)
        self.execution.run(sample, self.costs)
        return File(sample.key, path=sample.out)

    def _quantize(self, fmt: str, inputs: File | None) -> Made:
        """Make svdq.safetensors without any LoRA: quantized here, or imported from --quantized."""
        costs = self.costs.copy()
        if self.work.quantized is not None:
            taken = TakeQuantized.of(self.work, fmt, self.work.quantized)
            result = self.execution.run(taken, costs)
            return Made(File(taken.key, path=taken.out), result, costs)
        c, first = self.config, self.work.engines[0].format.name
        own_folder(self.work.shared, self.work.quantized_folder(fmt).name)
        calibrate = Calibrate.of(self.work, inputs, force=c.force and fmt == first)  # with --force, but once
        allocated, allocation = None, None
        if c.rank_auto is not None:
            allocate = Allocate.of(self.work, c.rank_auto, fmt, calibrate)
            if c.force:
                allocate.curves.unlink(missing_ok=True)
            allocated = self.execution.run(allocate, costs)
            allocation = File(allocate.key, path=allocate.out)
            calibrate = replace(calibrate, force=False)
        stage = Quantize.of(self.work, fmt, calibrate, allocation)
        self.screen.say(get_preset(c.preset).search_line(self.work.device))
        if c.force:
            shutil.rmtree(stage.out.with_name(f"{stage.out.name}.partial"), ignore_errors=True)  # left by a stopped run
        result = self.execution.run(stage, costs)
        record = freshness.lookup(calibrate.folder, calibrate.name, calibrate.key)
        collected = "" if record is None else record.digests[calibrate.out.name]
        return Made(File(stage.key, path=stage.out), result, costs, allocated, collected=collected)

    def _graph(self, engine: Engine, inputs: File | None) -> Made:
        """Make model.onnx of one format and attention in `engine.shared`, and everything that it needs."""
        fmt, folder = engine.format.name, engine.shared
        if fmt not in self.quantized:  # two graphs of one format differ in their attention alone
            self.quantized[fmt] = self._quantize(fmt, inputs)
        made = replace(self.quantized[fmt], costs=self.quantized[fmt].costs.copy())
        artifact = made.artifact
        if self.work.loras:
            apply = ApplyLoras.of(self.work, fmt, artifact, folder)
            made.loras = self.execution.run(apply, made.costs)
            artifact = File(apply.key, path=apply.out)
        elif folder != artifact.path.parent:  # slots or attention alone: the artifact as it is
            own_folder(folder.parent, folder.name)
            artifact = File(artifact.id, path=folder / artifact.path.name)
            self._place(made.artifact.path, artifact.path)
        stage = Export.of(self.work, fmt, engine.attention, artifact)
        made.exported = self.execution.run(stage, made.costs)
        if self.config.attention == "plugin" and made.exported.attention != "plugin":
            raise no_attention(self.work.spec)  # of an import, or an allocation, the nodes are known only now
        made.graph = File(stage.key, path=stage.out)
        return made

    def _reference_graph(self) -> File:
        stage = ReferenceExport.of(self.work)
        self.execution.run(stage, self.costs)
        return File(stage.key, path=stage.out)

    def _reference_outputs(self, graph: File, inputs: File | None) -> File:
        stage = RunReference.of(self.work, "FP16", graph, inputs, self.work.shared / "reference.npz")
        self.execution.run(stage, self.costs)
        return File(stage.key, path=stage.out)

    def _check(self, made: Made, fmt: str, folder: Path, reference: File, inputs: File | None) -> None:
        slots = folder / export.SLOTS_FILE if self.config.lora_slots else None
        run = RunQuantized.of(self.work, fmt, made.graph, inputs, folder / "quantized.npz", slots)
        made.checked_on = self.execution.run(run, made.costs)
        stage = Compare.of(self.work, fmt, folder, reference, File(run.key, path=run.out))
        made.compared = self.execution.run(stage, made.costs)
        for name in (ReferenceExport.name, RunReference.name):
            made.costs.seconds[name], made.costs.peak_rss[name] = self.costs.seconds[name], self.costs.peak_rss[name]

    # ---- one engine --------------------------------------------------------------------------------------------

    def _engine(self, engine: Engine, made: Made, encoders: Mapping[str, Built]) -> Built:
        (engine.folder / manifest.NAME).unlink(missing_ok=True)  # written again once everything that it lists exists
        pieces = export.piece_files(self.config.step_cache)
        for name in (quantize.FILE, compare.FILE, export.FILE, f"{export.FILE}.data", *pieces):
            if name != compare.FILE or self.config.check:
                self._place(engine.shared / name, engine.folder / name)
        for name in {export.SLOTS_FILE, *export.piece_files(True)} - {*pieces}:
            (engine.folder / name).unlink(missing_ok=True)
        if self.config.lora_slots:
            self._place(engine.shared / export.SLOTS_FILE, engine.folder / export.SLOTS_FILE)
        library = plugin_lib.find()
        copy_plugin(library.path, engine.folder)
        costs, profiles = made.costs.copy(), self.work.inputs()
        planned, incomplete = plan_engine(
            self.execution, self.config, engine.folder, made.graph.id, engine.arch, profiles, library, costs, pieces
        )
        data = manifest_of(self.work, engine, made, costs, library, planned, incomplete, self.execution.digests)
        manifest.write(engine.folder, data)  # at once: a later engine may fail
        parts: list[Manifest] = []
        if self.parts is not None:
            quantized = {name: one.engine.folder for name, one in encoders.items()}
            parts = self.parts.engines(engine.folder, engine.arch, data, quantized)
        return Built(engine, data, incomplete, tuple(parts))

    def _place(self, source: Path, target: Path) -> None:
        """Put a stage's output where it is wanted too; it is known there by the same digest."""
        digest = self.execution.digests[source]
        place(source, target, digest)
        self.execution.digests[target] = digest

    def _with_peak(self, one: Built, peak_rss: int) -> Built:
        """The engine with the peak memory of the whole build in its manifest, in bytes."""
        data = msgspec.structs.replace(one.manifest, peak_rss_bytes=one.manifest.peak_rss_bytes | {"build": peak_rss})
        manifest.write(one.engine.folder, data)
        return replace(one, manifest=data)


def gate(built: Sequence[Built], min_sqnr: float) -> None:
    """Raise AccuracyError for the first output below `min_sqnr` dB."""
    for one in built:
        for output in one.manifest.accuracy.outputs if one.manifest.accuracy else ():
            if output.sqnr_db < min_sqnr:
                raise errors.AccuracyError(
                    f"{one.engine.folder.name}: {output.name}",
                    f"SQNR {output.sqnr_db:.2f} dB ({output.spread})",
                    f"at least {min_sqnr:g} dB (--min-sqnr)",
                    "Raise --rank, or use --preset best.",
                )


def quantize_formats(config: BuildConfig) -> dict[str, Made]:
    """Quantize a model in every format that the config's archs need, with progress on stderr."""
    return Build(config, Screen()).quantize()


def build(config: BuildConfig) -> list[Built]:
    """Build everything a config asks for, with progress on stderr."""
    return Build(config, Screen()).run()
