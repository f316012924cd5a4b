"""Memory of a server and of the processes of its models, while they work."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

import psutil

from svdq_trt.engine.gpu import used_bytes

MB = 1e6
#: samples of a run: ten of each fifth
SAMPLES = 50


class Memory:
    """What is looked at: resident memory of the server and of its stubs, and all GPU memory in use; in MB."""

    def __init__(self, pid: int, gpu: bool) -> None:
        self._server, self._gpu = psutil.Process(pid), gpu

    def look(self) -> dict[str, float]:
        """Memory now, by name."""
        stubs = self._server.children(recursive=True)
        found = {"server": _resident(self._server), "stubs": sum(map(_resident, stubs))}
        return found | {"gpu": used_bytes(0) / MB} if self._gpu else found


def growth(samples: Sequence[float]) -> float:
    """By how much the mean of the last fifth lies above that of the second; the first fifth is the warm-up's."""
    fifth = len(samples) // 5
    return fmean(samples[-fifth:]) - fmean(samples[fifth : 2 * fifth])


def _resident(process: psutil.Process) -> float:
    rss: int = process.memory_info().rss
    return rss / MB
