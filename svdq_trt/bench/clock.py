"""What measures: times between CUDA events, memory in use on the GPU, kernels that CUPTI saw."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from svdq_trt.base.files import parse_json
from svdq_trt.bench.kinds import Kernel
from svdq_trt.engine.gpu import used_bytes

WARMUP = 5  # calls before each series of timed ones
_PERCENTILES = {"median": 50, "p10": 10, "p90": 90}


class Clock(Protocol):
    """What `rounds.measure` and the contenders ask of one GPU; a test has one without a GPU.

    Attributes:
        device: torch's name of it, "cuda:0". gpu: its maker's.
    """

    device: str

    @property
    def gpu(self) -> str:
        """The GPU's name."""

    def running(self) -> AbstractContextManager[Any]:
        """Context in which all below is done, with the GPU current."""

    def now(self) -> float:
        """Seconds on the host."""

    def times(self, call: Callable[[], Any], repeat: int) -> list[float]:
        """Milliseconds of `repeat` calls, each by itself, after some that are not counted."""

    def used_bytes(self) -> int:
        """Memory in use on the whole GPU, by any process."""

    def settle(self) -> None:
        """Wait for the GPU, and give back what nothing uses any more."""

    def kernels(self, call: Callable[[], Any]) -> list[Kernel]:
        """The kernels and copies of one call in the order of their starts; empty where they cannot be seen."""


class CudaClock:
    """A Clock of a CUDA device, by torch."""

    def __init__(self, index: int = 0) -> None:
        self._index, self.device = index, f"cuda:{index}"

    @property
    def gpu(self) -> str:
        """The GPU's name."""
        return torch.cuda.get_device_name(self.device)

    def running(self) -> AbstractContextManager[Any]:
        """Context with the GPU current."""
        return torch.cuda.device(self.device)

    def now(self) -> float:
        """Seconds on the host."""
        return time.perf_counter()

    def times(self, call: Callable[[], Any], repeat: int) -> list[float]:
        """Milliseconds of single calls, each between two events on the current stream."""
        for _ in range(WARMUP):
            call()
        found = []
        for _ in range(repeat):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            call()
            end.record()
            end.synchronize()
            found.append(float(start.elapsed_time(end)))
        return found

    def used_bytes(self) -> int:
        """Memory in use on the GPU, by any process."""
        return used_bytes(self._index)

    def settle(self) -> None:
        """Wait for the GPU; torch gives back memory that it only keeps."""
        torch.cuda.synchronize()
        torch.cuda.empty_cache()

    def kernels(self, call: Callable[[], Any]) -> list[Kernel]:
        """The kernels of a call that launches them one by one, not as a CUDA graph; they may overlap."""
        activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=activities) as traced:
            call()
            torch.cuda.synchronize()
        with tempfile.NamedTemporaryFile(suffix=".json") as file:
            traced.export_chrome_trace(file.name)
            events = parse_json(Path(file.name).read_bytes())["traceEvents"]
        device = [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
        device.sort(key=lambda e: e["ts"])
        return [(e["name"], round(e["dur"], 3), round(e["ts"] - device[0]["ts"], 3)) for e in device]


def percentiles(times: Sequence[float]) -> dict[str, float]:
    """Median, p10 and p90 of times."""
    return {name: float(np.percentile(times, q)) for name, q in _PERCENTILES.items()}
