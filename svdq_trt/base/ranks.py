"""The ranks of one torchrun at work on a shared stage: who takes which layers, who is done, who failed.

Only short texts pass between them, through the store that torchrun's agent holds; layers and calibration are files.
A store, not collectives: when a rank dies, a collective breaks on all others, each with an error of its own, while
here the first failure is a text that the others find and stop for, and that rank 0 reports (build/sharing.py).

Keys, below ``svdq/<restart>/``: ``end``, ``job/<n>`` {stage, log}, and for each job ``<n>/calibrated``,
``<n>/done`` (number of finished ranks), ``<n>/work`` (cost of the finished layers), ``<n>/failed`` (an error as
`errors.error_fields` writes it).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from typing import Any

from svdq_trt.base.errors import SvdqError, rebuild_error

POLL_S = 0.1


def rank() -> int:
    """This process's rank; 0 outside of torchrun."""
    return int(os.environ.get("RANK", "0")) if size() > 1 else 0


def size() -> int:
    """How many processes torchrun started; 1 outside of it."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "TORCHELASTIC_RUN_ID" in os.environ else 1


def local_rank() -> int:
    """This process's number on its machine, for the choice of a GPU."""
    return int(os.environ.get("LOCAL_RANK", "0")) if size() > 1 else 0


def local_size() -> int:
    """How many processes torchrun started on this machine; 1 outside of it."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if size() > 1 else 1


def connect() -> Any:
    """The store of torchrun's agent, under a prefix of our own."""
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined, unused-ignore]

    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    return PrefixStore(f"svdq/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


class Alone:
    """The crew of a stage that runs in this process only: the interface of `Crew` for one rank."""

    rank, size = 0, 1

    def __init__(self) -> None:
        self._work = 0

    def share(self, costs: Sequence[int]) -> list[int]:
        """Indices of the items that this rank takes, ascending."""
        return list(range(len(costs)))

    def worked(self, cost: int) -> int:
        """Record a finished layer of this cost; returns the cost of all finished layers, on all ranks."""
        self._work += cost
        return self._work

    def calibrated(self) -> None:
        """Announce, on rank 0, that calib.safetensors is written."""

    def wait_for_calibration(self) -> None:
        """Wait, on other ranks, until rank 0 has announced it."""

    def finished(self) -> None:
        """Announce that all of this rank's layers are written."""

    def wait_for_all(self, waiting: Callable[[int], None]) -> None:
        """Wait until all ranks have finished; `waiting` is called with the cost of the finished layers."""


class Crew(Alone):
    """All ranks at work on the shared stage number `job`, as seen from this one.

    Every call but `share` raises the error of a rank that failed, or an error saying that rank 0 has ended.
    """

    def __init__(self, job: int) -> None:
        super().__init__()
        self.rank, self.size, self._job, self._store = rank(), size(), job, connect()

    def share(self, costs: Sequence[int]) -> list[int]:
        """Indices of this rank's items: in order of falling cost, each goes to the rank with the least work so far."""
        loads, mine = [0] * self.size, []
        for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
            least = loads.index(min(loads))
            loads[least] += costs[i]
            if least == self.rank:
                mine.append(i)
        return sorted(mine)

    def worked(self, cost: int) -> int:
        """Record a finished layer in the store."""
        self._check()
        return int(self._store.add(f"{self._job}/work", cost))

    def calibrated(self) -> None:
        """Set the key that other ranks wait for."""
        self._check()
        self._store.set(f"{self._job}/calibrated", "")

    def wait_for_calibration(self) -> None:
        """Poll the store until that key is set."""
        self._wait(lambda: bool(self._store.check([f"{self._job}/calibrated"])))

    def finished(self) -> None:
        """Count this rank as finished."""
        self._check()
        self._store.add(f"{self._job}/done", 1)

    def wait_for_all(self, waiting: Callable[[int], None]) -> None:
        """Poll the store until every rank is counted as finished."""

        def ready() -> bool:
            waiting(int(self._store.add(f"{self._job}/work", 0)))
            return int(self._store.add(f"{self._job}/done", 0)) >= self.size

        self._wait(ready)

    def _wait(self, ready: Callable[[], bool]) -> None:
        while not ready():
            self._check()
            time.sleep(POLL_S)

    def _check(self) -> None:
        if self._store.check([f"{self._job}/failed"]):
            raise rebuild_error(json.loads(self._store.get(f"{self._job}/failed")))
        if self._store.check(["end"]):
            raise SvdqError("rank 0", "it has ended", "it to continue")
