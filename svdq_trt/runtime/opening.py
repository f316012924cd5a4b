"""An engine folder -> a deserialized engine, after every check that needs no deserialization.

A plan is a program: TensorRT trusts what is in it. So manifest, GPU, TensorRT release, plugin version and
digests are compared first, cheapest first, and each error says how to mend the mismatch.
"""

from __future__ import annotations

import mmap
import threading
import time
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

from svdq_trt.artifact import manifest
from svdq_trt.artifact.held import Held
from svdq_trt.artifact.manifest import Manifest
from svdq_trt.base.errors import ArtifactError, SvdqError, UnsupportedError, UsageError
from svdq_trt.engine import plugin_lib
from svdq_trt.engine.backend import MODULES, Backend, available
from svdq_trt.engine.gpu import local_arch, on_gpu
from svdq_trt.engine.last_errors import LastErrors

_FIRST = threading.Lock()  # of engines that are opened side by side, the first makes what all of them share


@dataclass(frozen=True)
class Opened:
    """A deserialized engine.

    Attributes:
        plans: files of the plan, or of its pieces. engines: an ICudaEngine of each.
        logger: messages of TensorRT and the plugin; `errors` as text is "" or one line.
        seconds: spent on "check" (manifest, digests) and on "load" (plugin, plan).
    """

    folder: Path
    manifest: Manifest
    backend: Backend
    plans: tuple[Held, ...]
    engines: tuple[Any, ...]
    logger: Any
    seconds: dict[str, float]


def open_engine(
    folder: Path,
    *,
    allow_host_code: bool = False,
    allow_arch_mismatch: bool = False,
    device: int = 0,
    weight_budget: int | None = None,
) -> Opened:
    """Check `folder` and deserialize its plan, or the pieces of it, on CUDA device `device`.

    Machine code for the host comes from the installed plugin library alone, unless `allow_host_code`: then it
    comes from the folder, embedded in the plan or beside it. Only do that with folders that you trust. A plan that
    carries a library is refused without, as TensorRT-RTX 1.6 loads it whatever engine_host_code_allowed says.

    Args:
        weight_budget: see Session. TensorRT takes it only before there is a context.

    Raises:
        UsageError, UnsupportedError: as check_weight_budget.
        ArtifactError: the manifest, a digest, the arch or the plugin version does not fit.
        UnsupportedError: no such GPU, not the TensorRT release that wrote the plan, or a plan that carries a library.
        SvdqError: TensorRT refuses the plan; carries its last error.
    """
    started = time.perf_counter()
    data = manifest.read(folder)
    if weight_budget is not None:
        check_weight_budget("weight_budget", data, weight_budget)
    arch = local_arch(device)
    if arch is None:
        raise UnsupportedError(f"CUDA device {device}", "not found", "an NVIDIA GPU and its driver")
    plugin = data.plugin
    embedded = plugin is not None and plugin.embedded
    if embedded and not allow_host_code:
        raise UnsupportedError(
            str(folder),
            "a plan that carries machine code, its plugin library",
            "a plan without, or allow_host_code=True if you trust it",
            f"Make the plan anew, which then uses the installed library: {manifest.finish_command(folder)}",
        )
    beside = folder / Path(plugin.file).name if plugin is not None and allow_host_code and not embedded else None
    installed = None if plugin is None or allow_host_code else plugin_lib.find()
    # Arch and plugin version first; the digests (seconds for gigabytes) only once the release is right. The
    # folder's own library is not asked for its version, which would run it: its digest proves that it is the
    # manifest's.
    wanted = None if allow_arch_mismatch else arch
    manifest.verify(folder, wanted, None if installed is None else installed.version, parts=())
    if not allow_arch_mismatch:
        _check_platform(folder, data)
    backend = find_backend(folder, data)
    manifest.verify(folder, parts=("plan",) if beside is None else ("plan", "plugin"))
    assert data.plan is not None  # verified
    checked = time.perf_counter()

    trt = backend.module
    library = beside if installed is None else installed.path
    plans = tuple(manifest.files_of(data.plan))
    with on_gpu(device):
        with _FIRST:
            logger = logger_of(trt)
            if library is not None:
                plugin_lib.load_into(trt, library)
            runtime = trt.Runtime(logger)
        runtime.engine_host_code_allowed = embedded  # and so allowed
        engines = tuple(_deserialize(runtime, folder / Path(plan.file).name) for plan in plans)
        if None in engines:
            raise SvdqError(str(folder), str(logger.errors) or "not deserialized", "a plan that TensorRT loads")
        if weight_budget is not None:
            for engine in engines:  # of one piece, as no other is streamed
                engine.weight_streaming_budget_v2 = min(weight_budget, engine.streamable_weights_size)
    seconds = {"check": checked - started, "load": time.perf_counter() - checked}
    return Opened(folder, data, backend, plans, engines, logger, seconds)


def check_weight_budget(where: str, data: Manifest, budget: int) -> None:
    """Check a weight budget of an engine before the engine is opened; `where` names the budget in errors.

    Raises:
        UsageError: below 0. UnsupportedError: an engine that was built without --weight-streaming.
    """
    if budget < 0:
        raise UsageError(where, f"{budget} bytes", "0 or more")
    if data.plan is not None and not data.plan.weight_streaming:
        raise UnsupportedError(
            where,
            "an engine that was built without --weight-streaming",
            "one that was built with it",
            "Build it again with it, or leave the budget out.",
        )


def _check_platform(folder: Path, data: Manifest) -> None:
    """Raise UnsupportedError for a plan from another kind of machine; earlier releases did not record theirs."""
    here, there = plugin_lib.this_platform(), "" if data.plugin is None else data.plugin.platform
    if there and there != here:
        raise UnsupportedError(
            str(folder),
            f"a plan and its plugin library for {there}",
            f"for {here}, this machine",
            "Install svdq-trt here, which compiles the plugin library for this machine, then: "
            f"{manifest.finish_command(folder)}",
        )


def find_backend(folder: Path, data: Manifest) -> Backend:
    """Find the TensorRT that wrote the plan, in exactly that release: plans load in no other.

    Raises:
        ArtifactError: the manifest names no TensorRT. UnsupportedError: not installed, or another release.
    """
    name, version = (data.backend.name, data.backend.version) if data.backend else ("", "")
    if name not in MODULES:
        raise ArtifactError(
            f"{folder / manifest.NAME}: backend",
            f"{name} {version}".strip() or "none",
            f"one of {', '.join(MODULES)}",
            "Build the engine again.",
        )
    found = available(name)
    fix = f"pip install {name}=={version}, or build the engine again."
    if not found:
        raise UnsupportedError(str(folder), f"no Python module {MODULES[name]}", f"{name} {version}", fix)
    if found[0].version != version:
        raise UnsupportedError(
            str(folder), f"{name} {found[0].version} is installed", f"{version}, the release that wrote the plan", fix
        )
    return found[0]


def _deserialize(runtime: Any, plan: Path) -> Any:
    with plan.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        return runtime.deserialize_cuda_engine(data)


@cache
def logger_of(trt: ModuleType) -> Any:
    """One logger per TensorRT module: TensorRT keeps the first that a process gives it."""

    class Logger(trt.ILogger):  # type: ignore[name-defined]
        """Logger that prints nothing and keeps the last warnings and errors."""

        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors = LastErrors()

        def log(self, severity: Any, message: str) -> None:
            if severity <= trt.ILogger.ERROR:
                self.errors.add(message)

    return Logger()
