"""The ranks of one torchrun at work on a shared stage: who takes which layers, who is done, who failed.

Between them pass short texts only, through the store that torchrun's agent holds; layers and calibration are files.
A store and no collectives: where a rank dies, a collective breaks on all others, each with an error of its own, while
here the first failure is a text that the others find, stop for, and leave to rank 0 to tell (ranks.py).

Keys, below ``svdq/<restart>/``: ``end``, ``job/<n>`` {stage, args, log}, and of each job ``<n>/calibrated``,
``<n>/done`` (ranks that are), ``<n>/work`` (cost of the finished layers), ``<n>/failed`` (an error, see events.py).
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
    """The store of torchrun's agent, below a prefix of our own."""
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined, unused-ignore]

    store = TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False)
    return PrefixStore(f"svdq/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


class Alone:
    """The crew of a stage that runs here only; what `Crew` does for several."""

    rank, size = 0, 1

    def __init__(self) -> None:
        self._work = 0

    def share(self, costs: Sequence[int]) -> list[int]:
        """Which of the items are this rank's, ascending."""
        return list(range(len(costs)))

    def worked(self, cost: int) -> int:
        """A layer of that cost is finished here; returns the cost of all finished ones, on all ranks."""
        self._work += cost
        return self._work

    def calibrated(self) -> None:
        """Rank 0: calib.safetensors is there."""

    def wait_for_calibration(self) -> None:
        """Other ranks: until it is."""

    def finished(self) -> None:
        """All of this rank's layers are files."""

    def wait_for_all(self, waiting: Callable[[int], None]) -> None:
        """Until all ranks have finished; `waiting` is called with the cost of the finished layers."""


class Crew(Alone):
    """All ranks at work on the shared stage number `job`, as seen from this one.

    Every call but `share` raises the error of a rank that failed, or that rank 0 has ended.
    """

    def __init__(self, job: int) -> None:
        super().__init__()
        self.rank, self.size, self._job, self._store = rank(), size(), job, connect()

    def share(self, costs: Sequence[int]) -> list[int]:
        """By falling cost, each to the rank that has least."""
        loads, mine = [0] * self.size, []
        for i in sorted(range(len(costs)), key=lambda i: -costs[i]):
            least = loads.index(min(loads))
            loads[least] += costs[i]
            if least == self.rank:
                mine.append(i)
        return sorted(mine)

    def worked(self, cost: int) -> int:
        """See Alone."""
        self._check()
        return int(self._store.add(f"{self._job}/work", cost))

    def calibrated(self) -> None:
        """See Alone."""
        self._check()
        self._store.set(f"{self._job}/calibrated", "")

    def wait_for_calibration(self) -> None:
        """See Alone."""
        self._wait(lambda: bool(self._store.check([f"{self._job}/calibrated"])))

    def finished(self) -> None:
        """See Alone."""
        self._check()
        self._store.add(f"{self._job}/done", 1)

    def wait_for_all(self, waiting: Callable[[int], None]) -> None:
        """See Alone."""

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
            raise SvdqError("rank 0", "it has ended", "it to go on")
