"""Run a build: every stage that is not fresh, in order; then link, plan and manifest per engine."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil

from svdq_trt.artifact import manifest
from svdq_trt.base import errors
from svdq_trt.base.files import remove_leftovers
from svdq_trt.build import freshness
from svdq_trt.build.config import BuildConfig
from svdq_trt.build.folder import copy_plugin, only_writer, place
from svdq_trt.build.manifest_data import manifest_of
from svdq_trt.build.plan_of_work import CHECK_SEED, Engine, Work, key, plan_work
from svdq_trt.build.process import RssSampler
from svdq_trt.build.sharing import SharingRunner
from svdq_trt.build.stages.allocate import CURVES as CURVES_FILE
from svdq_trt.build.ui import Screen
from svdq_trt.quantize.preset import get_preset

SAMPLED_FILE = "calibration-inputs.safetensors"
SLOTS_FILE = "lora_slots.safetensors"  # svdq_trt.lora.slots.FILE, which would import torch here
ALLOCATION_FILE = "allocation.json"
#: free memory at which the FP16 export may run beside the quantizer: two copies of SDXL and their working memory
_ROOM_FOR_TWO_BYTES = 16 * 10**9

_PLACES = {"cpu": "CPU", "cuda": "GPU"}


class _Inline(Executor):
    """An executor that runs what it is given at once, in the caller's thread."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run `fn` now; its exception is raised here."""
        future: Future[Any] = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@dataclass
class Ledger:
    """What the stages of one engine returned and cost, by stage name."""

    results: dict[str, dict[str, Any]] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    peak_rss: dict[str, int] = field(default_factory=dict)

    def extended(self) -> Ledger:
        """A copy to add an engine's own stages to."""
        return Ledger(dict(self.results), dict(self.seconds), dict(self.peak_rss))


@dataclass(frozen=True)
class Built:
    """One engine: its manifest, or why its plan is still missing."""

    engine: Engine
    manifest: dict[str, Any]
    incomplete: errors.IncompleteError | None


@dataclass(frozen=True)
class Quantized:
    """One quantized model, of `Build.quantize`."""

    format: str
    path: Path
    ledger: Ledger


class Build:
    """One run of a BuildConfig."""

    def __init__(self, config: BuildConfig, screen: Screen) -> None:
        self.config, self.screen, self.runner = config, screen, SharingRunner()
        self.work: Work = plan_work(config)
        self.ledger = Ledger()

    def run(self) -> list[Built]:
        """All engines, in the order asked for.

        Raises:
            SvdqError: the first stage that failed. Finished stages stay and are reused by the next run.
        """
        with only_writer(self.work.shared, *(engine.folder for engine in self.work.engines)):
            sampler = RssSampler(os.getpid())
            try:
                with self.screen:
                    built = self._run()
            finally:
                peak = sampler.stop()
            for one in built:
                one.manifest["peak_rss_bytes"]["build"] = peak
                manifest.write(one.engine.folder, one.manifest)
        return built

    def quantize(self) -> list[Quantized]:
        """The quantized model of each format, and nothing after it. Raises as `run`."""
        with only_writer(self.work.shared), self.screen:
            self._sample()
            done = []
            for fmt in self.work.formats():
                folder, ledger = self.work.quantized_folder(fmt.name), self.ledger.extended()
                self._quantize(ledger, fmt.name, folder)
                done.append(Quantized(fmt.name, folder / "svdq.safetensors", ledger))
        return done

    def _run(self) -> list[Built]:
        formats = self.work.formats().items()
        self._sample()
        with self._side_by_side() as pool:
            reference = pool.submit(self._reference_export) if self.config.check else None
            if reference is not None:  # its failure ends the main line at once, and is the one to tell of
                reference.add_done_callback(lambda done: self.runner.stop() if done.exception() else None)
            try:
                per_format = {fmt.name: self._format_stages(fmt.name, folder) for fmt, folder in formats}
            except errors.SvdqError:
                if reference is not None and reference.done():
                    reference.result()
                raise
            reference_key = "" if reference is None else reference.result()
        # Sessions and the builder run alone: each may take most of the machine's memory.
        if self.config.check:
            self._run_onnx(
                self.ledger,
                "reference_run",
                "check     FP16 run",
                self.work.shared,
                "model-fp16.onnx",
                "reference.npz",
                reference_key,
            )
            for fmt, folder in formats:
                self._check(per_format[fmt.name], fmt.name, folder)
        return [self._engine(engine, per_format[engine.format.name].extended()) for engine in self.work.engines]

    @contextmanager
    def _side_by_side(self) -> Iterator[Executor]:
        """One more stage beside the main line, where memory allows; an error in either ends the other."""
        roomy = psutil.virtual_memory().available >= _ROOM_FOR_TWO_BYTES
        pool: Executor = ThreadPoolExecutor(max_workers=1) if roomy else _Inline()
        try:
            yield pool
        except BaseException:
            self.runner.stop()
            raise
        finally:
            pool.shutdown()

    # ---- stages ------------------------------------------------------------------------------------------------

    def _stage(
        self,
        ledger: Ledger,
        name: str,
        label: str,
        module: str,
        folder: Path,
        stage_key: str,
        files: list[str],
        args: dict[str, Any],
    ) -> dict[str, Any]:
        """Run one stage unless it is fresh; record result, time and memory."""
        record = None if self.config.force else freshness.lookup(folder, name, stage_key)
        if record is None:
            folder.mkdir(parents=True, exist_ok=True)
            remove_leftovers(folder, files)
            with self.screen.stage(label) as progress:
                done = self.runner.run(module, args, self.work.logs / f"{folder.name}.{name}.log", progress)
            record = {"value": done.value, "seconds": done.seconds, "peak_rss_bytes": done.peak_rss_bytes}
            freshness.store(folder, name, stage_key, files, record)
        else:
            self.screen.reused(label)
        for note in record["value"].get("notes", ()):
            self.screen.say(note)
        ledger.results[name] = record["value"]
        ledger.seconds[name] = round(record["seconds"], 2)
        ledger.peak_rss[name] = record["peak_rss_bytes"]
        value: dict[str, Any] = record["value"]
        return value

    def _weights(self) -> dict[str, Any]:
        c = self.config
        return {"model": c.model, "checkpoint": c.checkpoint, "random_weights": c.random_weights}

    def _profile_key(self) -> list[str]:
        """The graph depends on the range of every size."""
        return [f"{s}:{low}:{high}" for s, (low, _, high) in sorted(self.work.profile.items())]

    def _format_stages(self, fmt: str, folder: Path) -> Ledger:
        ledger, c, work = self.ledger.extended(), self.config, self.work
        quantized, slots_file = work.quantized_folder(fmt), [SLOTS_FILE] if c.lora_slots else []
        quantize = self._quantize if c.quantized is None else self._import
        quantize_key = quantize(ledger, fmt, quantized)
        artifact_key = self._lora(ledger, fmt, quantized, folder, quantize_key)
        options = {"lora_slots": c.lora_slots, "fuse_mlp": c.fuse_mlp}
        export_key = key("export", quantize=artifact_key, profile=self._profile_key(), **options)
        args = {
            "model": c.model,
            "artifact": str(folder / "svdq.safetensors"),
            "profile": work.profile,
            "out": str(folder / "model.onnx"),
            **options,
        }
        files = ["model.onnx", "model.onnx.data", *slots_file]
        self._stage(ledger, "export", f"export    {fmt} ONNX", "export", folder, export_key, files, args)
        ledger.results["keys"] = {"export": export_key, "quantize": quantize_key}
        return ledger

    def _import(self, ledger: Ledger, fmt: str, folder: Path) -> str:
        """--quantized in the quantizer's place: the same artifact. Returns its key."""
        import_key = key("import", file=self.work.quantized_id)
        out = folder / "svdq.safetensors"
        args = {"model": self.config.model, "path": str(self.config.quantized), "out": str(out)}
        self._stage(ledger, "quantize", f"import    {fmt}", "take_quantized", folder, import_key, [out.name], args)
        return import_key

    def _sample(self) -> None:
        """Record the inputs to calibrate on, where a pipeline is to give them."""
        c, work, sampling = self.config, self.work, self.config.sampling
        self.calibration, self.calibration_id = c.calibration, c.calibration_id()
        if sampling is None:
            return
        sizes = {symbol: work.profile[symbol][1] for symbol in ("height", "width")}
        self.calibration = work.shared / SAMPLED_FILE
        self.calibration_id = key("sample", sampling=sampling.identity(), sizes=sizes, device=work.device)
        args = (
            asdict(sampling)
            | sizes
            | {
                "model": c.model,
                "pipeline": str(sampling.pipeline),
                "prompts": str(sampling.prompts),
                "device": work.device,
                "out": str(self.calibration),
            }
        )
        self._stage(
            self.ledger,
            "sample",
            f"sample    {sampling.pipeline.name}",
            "sample",
            work.shared,
            self.calibration_id,
            [SAMPLED_FILE],
            args,
        )

    def _quantize(self, ledger: Ledger, fmt: str, folder: Path) -> str:
        """Calibrate and quantize. Returns the artifact's key."""
        c, work = self.config, self.work
        skip, first = list(c.skip), work.engines[0].format.name  # --force: calibrate again, but once
        calib_key = key("calibrate", weights=work.weights_id, inputs=self.calibration_id, skip=skip, device=work.device)
        prepare = self._weights() | {
            "skip": skip,
            "calibration": None if self.calibration is None else str(self.calibration),
            "shared": str(work.shared),
            "calib_key": calib_key,
            "force": c.force and fmt == first,
            "format": fmt,
            "device": work.device,
        }
        rank: int | str = c.rank
        if c.rank_auto is not None:
            rank = self._allocate(ledger, fmt, folder, calib_key, prepare)
            prepare["force"] = False  # has been calibrated
        quantize_key = key("quantize", calibrate=calib_key, format=fmt, rank=rank, preset=c.preset)
        args = prepare | {
            "rank": c.rank,
            "allocation": None if c.rank_auto is None else str(folder / ALLOCATION_FILE),
            "preset": c.preset,
            "out": str(folder / "svdq.safetensors"),
            "key": quantize_key,
        }
        self.screen.say(f"search: {get_preset(c.preset).describe()}; on the {_PLACES[work.device]}")
        if c.force:
            shutil.rmtree(folder / "svdq.safetensors.partial", ignore_errors=True)  # of a run that was stopped
        label = f"quantize  {fmt} rank {self._rank_text()}"
        self._stage(ledger, "quantize", label, "quantize", folder, quantize_key, ["svdq.safetensors"], args)
        return quantize_key

    def _rank_text(self) -> str:
        return str(self.config.rank) if self.config.rank_auto is None else "auto"

    def _allocate(self, ledger: Ledger, fmt: str, folder: Path, calib_key: str, prepare: dict[str, Any]) -> str:
        """--rank auto: choose the ranks. Returns the choice's key."""
        auto = self.config.rank_auto
        assert auto is not None
        curves_key = key("allocate", calibrate=calib_key, format=fmt)  # another budget reads the same curves
        goal = {"budget_bytes": auto.budget_bytes, "target_sqnr": auto.target_sqnr}
        allocate_key = key("allocate", curves=curves_key, scan=self.work.scan_id, **goal)
        args = (
            prepare
            | goal
            | {
                "sensitivity": None if auto.sensitivity is None else str(auto.sensitivity),
                "curves_key": curves_key,
                "out": str(folder / ALLOCATION_FILE),
            }
        )
        if self.config.force:
            (folder / CURVES_FILE).unlink(missing_ok=True)
        label = f"allocate  {fmt} ranks"
        self._stage(ledger, "allocate", label, "allocate", folder, allocate_key, [ALLOCATION_FILE], args)
        return allocate_key

    def _lora(self, ledger: Ledger, fmt: str, quantized: Path, folder: Path, quantize_key: str) -> str:
        """The quantized model with the LoRA files in it, in the graph's folder; its key."""
        if not self.work.loras_id:
            if folder != quantized:  # slots alone: the artifact as it is
                folder.mkdir(parents=True, exist_ok=True)
                place(quantized / "svdq.safetensors", folder / "svdq.safetensors", link=True)
            return quantize_key
        lora_key = key("lora", quantize=quantize_key, **self.work.lora_key())
        args = {
            "model": self.config.model,
            "artifact": str(quantized / "svdq.safetensors"),
            "out": str(folder / "svdq.safetensors"),
            **self.work.lora_args(),
        }
        count = len(self.work.loras_id)
        label = f"lora      {fmt} {count} file{'s' if count > 1 else ''}"
        self._stage(ledger, "lora", label, "lora", folder, lora_key, ["svdq.safetensors"], args)
        return lora_key

    def _reference_export(self) -> str:
        work, folder = self.work, self.work.shared
        export_key = key("reference_export", weights=work.weights_id, profile=self._profile_key(), **work.lora_key())
        out = {"profile": work.profile, "out": str(folder / "model-fp16.onnx")}
        args = self._weights() | out | work.lora_args()
        files = ["model-fp16.onnx", "model-fp16.onnx.data"]
        self._stage(
            self.ledger, "reference_export", "check     FP16 ONNX", "reference_export", folder, export_key, files, args
        )
        return export_key

    def _run_onnx(
        self, ledger: Ledger, name: str, label: str, folder: Path, onnx: str, out: str, source_key: str
    ) -> str:
        sizes = self.work.check_sizes()
        run_key = key("run_onnx", source=source_key, sizes=sizes, seed=CHECK_SEED)
        args = {
            "model": self.config.model,
            "onnx": str(folder / onnx),
            "sizes": sizes,
            "seed": CHECK_SEED,
            "out": str(folder / out),
        }
        if self.config.lora_slots and name == "check_run":
            args["lora_slots"] = str(folder / SLOTS_FILE)
        self._stage(ledger, name, label, "run_onnx", folder, run_key, [out], args)
        return run_key

    def _check(self, ledger: Ledger, fmt: str, folder: Path) -> None:
        keys = ledger.results["keys"]
        run_key = self._run_onnx(
            ledger, "check_run", f"check     {fmt} run", folder, "model.onnx", "quantized.npz", keys["export"]
        )
        compare_key = key("compare", run=run_key, reference=self.work.weights_id, **self.work.lora_key())
        title = f"{self.config.model} {fmt} rank {self._rank_text()}"
        args = {
            "reference": str(self.work.shared / "reference.npz"),
            "quantized": str(folder / "quantized.npz"),
            "artifact": str(folder / "svdq.safetensors"),
            "title": title,
            "plot": str(folder / "accuracy.png"),
        }
        self._stage(
            ledger, "compare", f"check     {fmt} compare", "compare", folder, compare_key, ["accuracy.png"], args
        )
        for stage in ("reference_export", "reference_run"):
            ledger.seconds[stage], ledger.peak_rss[stage] = self.ledger.seconds[stage], self.ledger.peak_rss[stage]

    # ---- one engine --------------------------------------------------------------------------------------------

    def _engine(self, engine: Engine, ledger: Ledger) -> Built:
        from svdq_trt.engine import plugin_lib

        engine.folder.mkdir(parents=True, exist_ok=True)
        (engine.folder / manifest.NAME).unlink(missing_ok=True)  # it comes back when all it speaks of is there
        # onnx refuses external data with several hard links, so the ONNX files are copied.
        linked = {"svdq.safetensors": True, "accuracy.png": True, "model.onnx": False, "model.onnx.data": False}
        for name, link in linked.items():
            if name != "accuracy.png" or self.config.check:
                place(engine.shared / name, engine.folder / name, link)
        (engine.folder / SLOTS_FILE).unlink(missing_ok=True)
        if self.config.lora_slots:
            place(engine.shared / SLOTS_FILE, engine.folder / SLOTS_FILE, link=True)
        library = plugin_lib.find()
        plugin = copy_plugin(library.path, engine.folder)
        incomplete = self._plan(engine, ledger, library)
        data = manifest_of(self.work, engine, ledger, library, plugin, incomplete)
        manifest.write(engine.folder, data)
        return Built(engine, data, incomplete)

    def _plan(self, engine: Engine, ledger: Ledger, library: Any) -> errors.IncompleteError | None:
        from svdq_trt.engine.backend import select

        try:
            backend = select(self.config.backend, engine.arch)
        except errors.IncompleteError as error:
            (engine.folder / "model.plan").unlink(missing_ok=True)  # of an earlier build: not of these weights
            return error
        profiles = self.work.profiles()
        plan_key = key(
            "plan",
            export=ledger.results["keys"]["export"],
            arch=engine.arch,
            backend=backend.name,
            version=backend.version,
            plugin=library.sha256,
            profiles=profiles,
        )
        args = {
            "onnx": str(engine.folder / "model.onnx"),
            "arch": engine.arch,
            "backend": backend.name,
            "profiles": profiles,
            "plan": str(engine.folder / "model.plan"),
            "plugin": str(library.path),
        }
        label = f"plan      sm_{engine.arch} {backend.name}"
        self._stage(ledger, "plan", label, "plan", engine.folder, plan_key, ["model.plan"], args)
        return None


def gate(built: Sequence[Built], min_sqnr: float) -> None:
    """Raise AccuracyError for the first output below `min_sqnr` dB."""
    for one in built:
        for output in one.manifest["accuracy"]["outputs"]:
            if output["sqnr_db"] < min_sqnr:
                raise errors.AccuracyError(
                    f"{one.engine.folder.name}: {output['name']}",
                    f"SQNR {output['sqnr_db']:.2f} dB",
                    f"at least {min_sqnr:g} dB (--min-sqnr)",
                    "Raise --rank, or use --preset best.",
                )


def quantize(config: BuildConfig) -> list[Quantized]:
    """Quantize what a config's archs ask for, with progress on stderr."""
    return Build(config, Screen()).quantize()


def build(config: BuildConfig) -> list[Built]:
    """Build everything a config asks for, with progress on stderr."""
    return Build(config, Screen()).run()
