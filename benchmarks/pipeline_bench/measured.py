"""What a contender's process measures of itself, without a library that takes seconds to import."""

from __future__ import annotations

import statistics
import threading
import time
from collections.abc import Callable
from typing import Any

from svdq_trt.engine.gpu import used_bytes

GPU = 0
PERIOD = 0.02  # seconds between looks at the GPU's memory, for which imports wait


class Memory:
    """GPU memory in bytes that was in use at most, by any process, while the context was open; a thread looks at it.

    Attributes:
        used: more than at first, when there was a CUDA context and nothing in it.
    """

    def __init__(self) -> None:
        self._before = self._most = used_bytes(GPU)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    @property
    def used(self) -> int:
        return self._most - self._before

    def __enter__(self) -> Memory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._stop.wait(PERIOD):
            self._most = max(self._most, used_bytes(GPU))


def time_pictures(job: dict[str, Any], picture: Callable[[int], Any]) -> dict[str, Any]:
    """Time the first picture from `started` and the others each by itself; all are written beside the engine."""
    seconds, since = [], job["started"]
    for seed in range(1 + job["pictures"]):
        picture(seed).save(f"{job['out']}-{seed}.png")
        seconds.append(time.time() - since)
        since = time.time()
    return {"first_s": seconds[0], "picture_s": statistics.median(seconds[1:]), "all_s": seconds[1:]}
