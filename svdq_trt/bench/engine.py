"""An engine folder as a contender: opened twice, then run through Session as an application runs it."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from svdq_trt.artifact.manifest import Manifest
from svdq_trt.bench.clock import Clock
from svdq_trt.bench.kinds import by_kind
from svdq_trt.bench.rounds import Prepared, Profile
from svdq_trt.runtime.protocol import Runner


class Timeable(Runner, Protocol):
    """What is needed of a Session: see there."""

    compiled: bool
    cuda_graph: bool

    def layer_times(self, inputs: Mapping[str, Any], repeat: int = 5) -> dict[str, float]:
        """Layer -> ms."""


class EngineContender:
    """An engine folder.

    Args:
        folder, data: the folder and its manifest.
        feed: the inputs by name, in f32 where the model has floats.
        open_session: opens a session; its argument says whether with the runtime cache.
        weight_budget: bytes of weights that it keeps on the GPU; None: all.
    """

    def __init__(
        self,
        folder: Path,
        data: Manifest,
        feed: Mapping[str, np.ndarray],
        open_session: Callable[[bool], Timeable],
        clock: Clock,
        weight_budget: int | None = None,
    ) -> None:
        self.name = str(folder) if weight_budget is None else f"{folder}, {weight_budget / 1e9:.2f} GB"
        self._budget = weight_budget
        self._data, self._feed, self._open, self._clock = data, feed, open_session, clock
        self._session: Timeable | None = None
        self._inputs: dict[str, torch.Tensor] = {}

    def prepare(self) -> Prepared:
        """Open it with the runtime cache and, if that was filled already, once more without; otherwise again with it.

        So there is one opening of each kind, in two. Memory is that of the second: by then the process has loaded what
        all engines share.
        """
        first = self._opened(True)
        self.close()
        self._clock.settle()
        before = self._clock.used_bytes()
        second = self._opened(first["compiled"])
        self.call()  # with a CUDA graph, this one captures it
        self._clock.settle()
        memory = self._clock.used_bytes() - before
        cold, warm = (first, second) if first["compiled"] else (second, first)
        notes: tuple[str, ...] = ()
        if warm["compiled"] and self._caches():
            notes = (f"{self.name}: keeps no runtime cache, so it is compiled at each opening. Is it writable?",)
        return Prepared(
            memory, cold["total_s"], warm["total_s"], {**self._facts(), "open": cold, "reopen": warm}, notes
        )

    def call(self) -> None:
        """One run of the session."""
        assert self._session is not None
        self._session.run(self._inputs)

    def profile(self) -> Profile:
        """Kernels of one run, then the layers' times."""
        session = self._session
        assert session is not None
        session.cuda_graph = False
        self.call()
        kernels = self._clock.kernels(self.call)
        layers = session.layer_times(self._inputs)
        return Profile(by_kind(kernels) if kernels else None, {name: round(ms, 5) for name, ms in layers.items()})

    def close(self) -> None:
        """Close the session."""
        if self._session is not None:
            self._session.close()
        self._session, self._inputs = None, {}
        gc.collect()  # what refers to itself would keep its memory

    def _opened(self, cached: bool) -> dict[str, Any]:
        """Open the session and run once; the seconds of it."""
        started = self._clock.now()
        self._session = session = self._open(cached)
        opened = self._clock.now()
        dtypes = {p.name: getattr(torch, p.dtype) for p in session.inputs}
        self._inputs = {n: torch.from_numpy(v).to(self._clock.device, dtypes.get(n)) for n, v in self._feed.items()}
        self._clock.settle()
        ready = self._clock.now()
        self.call()
        self._clock.settle()
        run = self._clock.now() - ready
        return {
            "total_s": round(opened - started + run, 3),
            "first_run_s": round(run, 3),
            **{f"{part}_s": round(seconds, 3) for part, seconds in session.seconds.items()},
            "compiled": session.compiled,
        }

    def _caches(self) -> bool:
        return self._data.backend is not None and self._data.backend.name == "tensorrt-rtx"

    def _facts(self) -> dict[str, Any]:
        data = self._data
        assert data.plan is not None and data.backend is not None  # a session has opened it
        return {
            "model": data.model,
            "arch": data.arch,
            "format": data.format,
            "rank": data.rank,
            "attention": data.attention,
            "backend": f"{data.backend.name} {data.backend.version}",
            "plugin": "" if data.plugin is None else data.plugin.version,
            "plan_bytes": data.plan.bytes,
            "plan_sha256": data.plan.sha256,
            "weight_budget_bytes": self._budget,
        }
