"""The job of the engines: a prompt to pictures, opened as `svdq-trt run` opens them."""

from __future__ import annotations

import statistics
import time
from typing import Any

from pipeline_bench.measured import Memory, time_pictures
from svdq_trt.runtime.loading import load, slowest_opening
from svdq_trt.runtime.request import Request


def run(job: dict[str, Any]) -> dict[str, Any]:
    """Time engines. job: folder, allow (options of `load`), request (fields of Request), pictures, started, out."""
    with Memory() as memory:
        pipe = load(job["folder"], runtime="tensorrt", **job["allow"])
        from svdq_trt.runtime.generate import generate  # here: torch is imported while an engine is opened

        pipe.set_progress_bar_config(disable=True)
        opened = time.time()
        times = []

        def picture(seed: int) -> Any:
            (image,), taken = generate(pipe, Request(seed=seed, **job["request"]))
            times.append(taken)
            return image

        found = time_pictures(job, picture)
    parts = {part: statistics.median(one.seconds[part] for one in times[1:]) for part in times[0].seconds}
    slowest, seconds = slowest_opening(pipe)
    opening = {"open_s": opened - job["started"], "slowest": slowest, "slowest_s": dict(seconds)}
    return found | opening | {"memory_bytes": memory.used, "parts_s": parts}
