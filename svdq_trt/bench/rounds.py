"""Rounds of timed calls, in turn over all that is compared, so that a clock that drifts hits every one alike."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from svdq_trt.base.errors import SvdqError
from svdq_trt.bench.clock import Clock, percentiles
from svdq_trt.bench.kinds import Account


@dataclass(frozen=True)
class Prepared:
    """What it took to make a contender ready.

    Attributes:
        memory_bytes: GPU memory, weights, activations and buffers together.
        open_s, reopen_s: seconds until the first result; the first time, when kernels are compiled, and with what the
            runtime cache kept. None where there is no second time.
        facts: more about it, for the JSON file. notes: sentences for people.
    """

    memory_bytes: int
    open_s: float
    reopen_s: float | None
    facts: dict[str, Any]
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Profile:
    """One call's parts, outside a CUDA graph.

    Attributes:
        kinds: count and ms of kernels by kind; None where no kernel could be seen.
        layers_ms: TensorRT's layers and their times; empty for what is not TensorRT's.
    """

    kinds: Account | None
    layers_ms: dict[str, float]


class Contender(Protocol):
    """What can be timed: an engine, a module in torch.

    Attributes:
        name: as the user named it.
    """

    @property
    def name(self) -> str:
        """As the user named it."""

    def prepare(self) -> Prepared:
        """Make it ready for `call`; it stays in memory until `close`."""

    def call(self) -> None:
        """One call from inputs to outputs, on the current stream."""

    def profile(self) -> Profile:
        """The parts of one call; nothing is timed after it."""

    def close(self) -> None:
        """Free what it holds; also where `prepare` failed or was never called."""


@dataclass
class Measured:
    """A contender's figures; `rounds` has the ms of each call, round by round."""

    name: str
    prepared: Prepared
    profile: Profile | None = None
    rounds: list[list[float]] = field(default_factory=list)

    @property
    def latency_ms(self) -> dict[str, float]:
        """Median, p10 and p90 over the calls of all rounds."""
        return percentiles([ms for one in self.rounds for ms in one])

    def ratios(self, first: Measured) -> list[float]:
        """Time over the time of `first`, medians of each round."""
        pairs = zip(self.rounds, first.rounds, strict=True)
        return [percentiles(own)["median"] / percentiles(other)["median"] for own, other in pairs]

    def ratio(self, first: Measured) -> float:
        """Time over the time of `first`, medians over all rounds."""
        return self.latency_ms["median"] / first.latency_ms["median"]


def measure(
    contenders: Sequence[Contender],
    clock: Clock,
    rounds: int,
    repeat: int,
    with_profile: bool,
    say: Callable[[str], None],
) -> list[Measured]:
    """Prepare all, then time them in turn: forwards in one round, backwards in the next.

    Args:
        rounds, repeat: number of rounds, and of timed calls of each contender in a round.
        say: is told what comes next.

    Raises:
        SvdqError: one that cannot be prepared or run, or no room for all of them together.
    """
    try:
        found = []
        for one in contenders:
            say(f"opening {one.name}")
            found.append(Measured(one.name, one.prepare()))
        say(f"timing {rounds} rounds of {repeat} calls")
        pairs = list(zip(contenders, found, strict=True))
        for index in range(rounds):
            for one, measured in pairs if index % 2 == 0 else reversed(pairs):
                measured.rounds.append(clock.times(one.call, repeat))
        for one, measured in pairs if with_profile else ():
            say(f"profiling {one.name}")
            measured.profile = one.profile()
        return found
    except torch.OutOfMemoryError as error:
        fix = "Compare fewer at once, or close other programs on the GPU."
        raise SvdqError("svdq-trt bench", "out of GPU memory", "room for all that is compared", fix) from error
    finally:
        for one in contenders:
            one.close()
