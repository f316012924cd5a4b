"""The parts of an engine's time: TensorRT's own layer times, and the kernels that CUPTI saw, in order."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch


def layer_times(trt: Any, context: Any, run: Callable[[], Any], repeat: int) -> list[tuple[str, float]]:
    """(layer, mean ms) of `repeat` runs, in the order of execution; `run` executes `context` without a graph."""

    class Profiler(trt.IProfiler):  # type: ignore[misc, name-defined]
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)
            self.ms: dict[str, float] = {}

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            self.ms[layer_name] = self.ms.get(layer_name, 0.0) + ms

    context.profiler = profiler = Profiler()
    for _ in range(repeat):
        run()
        torch.cuda.synchronize()
    return [(name, round(ms / repeat, 5)) for name, ms in profiler.ms.items()]


def kernel_times(run: Callable[[], Any]) -> list[tuple[str, float, float]]:
    """(kernel or copy, us, start in us) of one run, in the order of their starts; they may overlap."""
    activities = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
    with torch.profiler.profile(activities=activities) as traced:
        run()
        torch.cuda.synchronize()
    with tempfile.NamedTemporaryFile(suffix=".json") as file:
        traced.export_chrome_trace(file.name)
        events = json.loads(Path(file.name).read_text())["traceEvents"]
    device = [e for e in events if e.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")]
    device.sort(key=lambda e: e["ts"])
    return [(e["name"], round(e["dur"], 3), round(e["ts"] - device[0]["ts"], 3)) for e in device]
