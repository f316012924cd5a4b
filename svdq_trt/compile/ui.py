"""What a person sees while a build runs: one line per stage with a bar, elapsed time and what it is at."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from svdq_trt.compile.events import Progress as ProgressCall

_PLAIN_EVERY_S = 20.0  # without a terminal: a line at most this often, so that a log shows life


class Screen:
    """Live bars on a terminal, plain lines elsewhere, both on stderr; results go to stdout.

    A context manager around the whole build; stages may come from several threads.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)
        self._live = Progress(
            TextColumn("  {task.description:<34}"), BarColumn(bar_width=28), TimeElapsedColumn(),
            TextColumn("{task.fields[text]}", style="dim"), console=self.console, transient=True,
            disable=not self.console.is_terminal,
        )  # fmt: skip

    def __enter__(self) -> Screen:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """A line above the bars."""
        self.console.print(f"  {text}", style="dim", soft_wrap=True)

    def reused(self, label: str) -> None:
        """A finished stage that is taken over."""
        self.console.print(f"  {label:<34} reused")

    @contextmanager
    def stage(self, label: str) -> Iterator[ProgressCall]:
        """Show a stage while it runs; yields the callback for its progress."""
        start = said = time.monotonic()
        task = self._live.add_task(label, total=None, text="")

        def show(done: float, total: float, text: str = "") -> None:
            nonlocal said
            self._live.update(task, completed=done, total=total or None, text=text[-48:])
            now = time.monotonic()
            if self._live.disable and now - said >= _PLAIN_EVERY_S:
                said = now
                share = f"{100 * done / total:3.0f} %" if total else ""
                self.console.print(f"  {label:<34} {share} {now - start:6.0f} s  {text}", soft_wrap=True)

        try:
            yield show
        finally:
            self._live.remove_task(task)
        self.console.print(f"  {label:<34} done  {time.monotonic() - start:6.1f} s")
