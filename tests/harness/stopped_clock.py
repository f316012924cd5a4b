"""A GPU's clock and an engine's session without a GPU, for tests of ``svdq-trt bench``."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from svdq_trt.artifact.manifest import TensorProfile
from svdq_trt.bench.kinds import Kernel


class StoppedClock:
    """A Clock whose time only its users move: `tick` seconds on the host, `cost` ms for the next timed call.

    Attributes:
        used: bytes on the GPU. seen: kernels that a profiled call shows.
    """

    def __init__(self, device: str = "cpu") -> None:
        self.device, self.gpu = device, "a GPU that is none"
        self.seconds, self.cost, self.used = 0.0, 0.0, 1000
        self.seen: list[Kernel] = []
        self.settled = 0

    def running(self) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def now(self) -> float:
        return self.seconds

    def times(self, call: Callable[[], Any], repeat: int) -> list[float]:
        found = []
        for _ in range(repeat):
            self.cost = 0.0
            call()
            found.append(self.cost)
        return found

    def used_bytes(self) -> int:
        return self.used

    def settle(self) -> None:
        self.settled += 1

    def kernels(self, call: Callable[[], Any]) -> list[Kernel]:
        call()
        return self.seen


class StoppedSession:
    """A session that costs what it is told: `ms` a call, `opening` seconds more where nothing is cached, `size` bytes.

    Attributes:
        fed: the inputs of each run, and whether as a graph.
    """

    model = "sdxl-tiny"
    output_names = ("y",)

    def __init__(
        self, clock: StoppedClock, profiles: list[TensorProfile], ms: float, cached: bool, opening: float, size: int
    ) -> None:
        self._clock, self._ms, self._size = clock, ms, size
        self.inputs, self.compiled, self.cuda_graph = profiles, not cached, True
        self.seconds = {"check": 1.0, "load": 2.0, "context": 0.0 if cached else opening}
        self.fed: list[tuple[dict[str, Any], bool]] = []
        self.closed = False
        clock.seconds += sum(self.seconds.values())
        clock.used += size

    def run(self, inputs: Any) -> dict[str, Any]:
        assert not self.closed
        self.fed.append((dict(inputs), self.cuda_graph))
        self._clock.cost += self._ms
        self._clock.seconds += 0.5
        return {}

    def layer_times(self, inputs: Any, repeat: int = 5) -> dict[str, float]:
        assert not self.cuda_graph
        return {"layer": 1.234567}

    def close(self) -> None:
        assert not self.closed
        self.closed = True
        self._clock.used -= self._size


@contextlib.contextmanager
def no_leak(clock: StoppedClock) -> Iterator[None]:
    """Context after which the GPU holds what it held before."""
    before = clock.used
    yield
    assert clock.used == before
