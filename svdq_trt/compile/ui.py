"""What a person sees while a build runs: one line per stage with a bar, elapsed time and what it is at."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from svdq_trt.compile.events import Progress as ProgressCall

_PLAIN_EVERY_S = 20.0  # without a terminal: a line at most this often, so that a log shows life


class Screen:
    """Progress on a terminal, plain lines elsewhere; results go to stdout, progress to stderr."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True, highlight=False)

    def reused(self, label: str) -> None:
        """A finished stage that is taken over."""
        self.console.print(f"  {label:<34} reused")

    @contextmanager
    def stage(self, label: str) -> Iterator[ProgressCall]:
        """Show a stage while it runs; yields the callback for its progress."""
        start = time.monotonic()
        if self.console.is_terminal:
            with self._bar() as bar:
                task = bar.add_task(label, total=None, text="")

                def live(done: float, total: float, text: str = "") -> None:
                    bar.update(task, completed=done, total=total, text=text[-48:])

                yield live
        else:
            last = start

            def plain(done: float, total: float, text: str = "") -> None:
                nonlocal last
                if time.monotonic() - last >= _PLAIN_EVERY_S:
                    last = time.monotonic()
                    share = f"{100 * done / total:3.0f} %" if total else ""
                    self.console.print(f"  {label:<34} {share} {last - start:6.0f} s  {text}", soft_wrap=True)

            yield plain
        self.console.print(f"  {label:<34} done  {time.monotonic() - start:6.1f} s")

    def _bar(self) -> Progress:
        return Progress(
            TextColumn("  {task.description:<34}"), BarColumn(bar_width=28), TimeElapsedColumn(),
            TextColumn("{task.fields[text]}", style="dim"), console=self.console, transient=True,
        )  # fmt: skip
