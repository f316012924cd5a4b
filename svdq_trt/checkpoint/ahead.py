"""Reading parameters before they are needed, by threads, while earlier ones are worked on."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch

Read = Callable[[str], torch.Tensor]
BUDGET_BYTES = 2 * 10**9  # of parameters that have been read but not asked for yet
_MOST_THREADS = 16  # one core draws, converts or checks some 300 MB/s


@contextmanager
def read_ahead(read: Read, order: Sequence[tuple[str, int]], budget: int = BUDGET_BYTES) -> Iterator[Read]:
    """Context that wraps `read` so that the next parameters in `order` are read ahead.

    Args:
        read: name -> parameter; called from several threads.
        order: (name, bytes) roughly in the order of the calls, a name as often as it is asked for. A parameter that
            is not being read ahead is read when asked for, and reading ahead continues after it in `order`: so a
            second pass over the model starts over, and a wrong guess costs only time.
        budget: most bytes that are being read ahead or wait to be asked for.
    """
    pool = ThreadPoolExecutor(min(_MOST_THREADS, os.cpu_count() or 1))
    try:
        yield _Ahead(read, order, budget, pool).get
    finally:
        pool.shutdown(cancel_futures=True)


@contextmanager
def read_ahead_of(device: torch.device, read: Read | None, order: Sequence[tuple[str, int]]) -> Iterator[Read | None]:
    """`read_ahead` for a GPU; on the CPU, where it would take cores from the work, `read` itself."""
    if read is None or device.type == "cpu":
        yield read
        return
    with read_ahead(read, order) as ahead:
        yield ahead


class _Ahead:
    def __init__(self, read: Read, order: Sequence[tuple[str, int]], budget: int, pool: ThreadPoolExecutor) -> None:
        self._read, self._order, self._budget, self._pool = read, order, budget, pool
        self._coming: dict[int, Future[torch.Tensor]] = {}  # by place in the order
        self._held = self._next = 0
        self._lock = threading.Lock()

    def get(self, name: str) -> torch.Tensor:
        """The parameter; raises what `read` raises."""
        with self._lock:
            place = next((i for i in self._coming if self._order[i][0] == name), None)
            if place is not None:
                known = self._coming.pop(place)
                self._held -= self._order[place][1]
            else:
                known = self._pool.submit(self._read, name)
                self._go_on_after(name)
            while self._next < len(self._order) and self._held + self._order[self._next][1] <= self._budget:
                self._held += self._order[self._next][1]
                self._coming[self._next] = self._pool.submit(self._read, self._order[self._next][0])
                self._next += 1
        return known.result()

    def _go_on_after(self, name: str) -> None:
        places = [i for i, (other, _) in enumerate(self._order) if other == name]
        if places:
            for future in self._coming.values():
                future.cancel()
            self._coming, self._held = {}, 0
            self._next = 1 + next((i for i in places if i >= self._next), places[0])
