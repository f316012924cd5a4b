"""Calls that run side by side, each in a thread, while their caller does something else."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Generic, TypeVar

T = TypeVar("T")


class SideBySide(Generic[T]):
    """Calls by name, each in a thread of its own from the beginning.

        with SideBySide({"unet": open_unet, "vae": open_vae}, discard=Runner.close) as opening:
            import diffusers
            sessions = opening.results()

    A call cannot be ended from outside: an exception in the context, KeyboardInterrupt too, waits for those that run.
    What they returned is then nobody's, and passed to `discard`.
    """

    def __init__(self, calls: Mapping[str, Callable[[], T]], discard: Callable[[T], None]) -> None:
        self._discard = discard
        self._pool = ThreadPoolExecutor(max(1, len(calls)))
        self._running = {name: self._pool.submit(call) for name, call in calls.items()}

    def results(self) -> dict[str, T]:
        """Wait for all. Raises the error of the first, in the order of `calls`, that failed."""
        return {name: one.result() for name, one in self._running.items()}

    def __enter__(self) -> SideBySide[T]:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._pool.shutdown()
        if kind is not None:
            for one in self._running.values():
                if one.exception() is None:
                    self._discard(one.result())
