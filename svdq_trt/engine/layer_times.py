"""The times of an engine's layers, as TensorRT's own profiler reports them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def profiled(trt: Any, context: Any) -> Iterator[dict[str, float]]:
    """Context in which runs of an IExecutionContext, not as a CUDA graph, add up: layer -> ms, in order of execution.

    What was added is complete once the runs' stream is synchronized.
    """
    total: dict[str, float] = {}

    class Profiler(trt.IProfiler):
        def __init__(self) -> None:
            trt.IProfiler.__init__(self)

        def report_layer_time(self, layer_name: str, ms: float) -> None:
            total[layer_name] = total.get(layer_name, 0.0) + ms

    context.profiler = Profiler()
    try:
        yield total
    finally:
        context.profiler = None
