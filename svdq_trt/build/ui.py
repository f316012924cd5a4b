"""The display of a running build: one line per stage with a bar, elapsed time and the current step."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

from rich.progress import BarColumn, Progress, TimeElapsedColumn
from rich.table import Column

from svdq_trt.base.progress import Progress as ProgressCall
from svdq_trt.build.console import Console, Words

_NEW_S = 3.0  # a step younger than this says too little about the rest
_PLAIN_EVERY_S = 20.0  # without a terminal: a line about this often, so that a log shows life
_BESIDE_BAR = 36 + 8 + 24 + 4  # columns of a terminal: label, elapsed, step and time left, gaps


class Estimate:
    """Estimate of the time left in a stage's current step: a run of calls with one total and rising `done`.

    Attributes:
        step: number of the current step, from 1 on; a call with a total of 1 or less says nothing about shares, and
            begins none.
    """

    def __init__(self) -> None:
        self.step = 0
        self._total = self._done = 0.0
        self._first = (0.0, 0.0)  # (done, time) when the step was first seen

    def __call__(self, done: float, total: float, now: float) -> str:
        """``3:20 min left``; empty while the step is new, or at its end."""
        if total <= 1:
            return ""
        if total != self._total or done < self._done:
            self.step += 1
            self._total, self._first = total, (done, now)
        self._done = done
        before, since = self._first
        if not before < done < total or now - since < _NEW_S:
            return ""
        seconds = round((now - since) * (total - done) / (done - before))
        return f"{seconds // 60}:{seconds % 60:02} min left"


class Screen:
    """Live bars on a terminal, plain lines elsewhere, both on stderr; results go to stdout.

    A context manager around the whole build; stages may come from several threads.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(stderr=True)
        self._live = Progress(
            Words("  {task.description:<34}"),
            BarColumn(bar_width=max(4, min(28, self.console.width - _BESIDE_BAR))),
            TimeElapsedColumn(),
            Words("{task.fields[left]}"),
            Words("{task.fields[text]}", style="dim", table_column=Column(no_wrap=True, ratio=1)),  # what may be cut
            console=self.console,
            expand=True,
            transient=True,
            disable=not self.console.is_terminal,
        )

    def __enter__(self) -> Screen:
        self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self._live.stop()

    def say(self, text: str) -> None:
        """Print a line above the bars."""
        self.console.print(f"  {text}", style="dim", soft_wrap=True)

    def reused(self, label: str) -> None:
        """Print that a finished stage is reused."""
        self.console.print(f"  {label:<34} reused")

    @contextmanager
    def stage(self, label: str) -> Iterator[ProgressCall]:
        """Show a stage while it runs; yields the callback for its progress.

        A share is that of the current step, whose number stands before it from the second on: so none runs backwards.
        """
        task = self._live.add_task(label, total=None, text="", left="")
        start = said = time.monotonic()
        estimate, latest = Estimate(), ("", "", "")  # share, time left, what is worked on

        def line(now: float) -> None:
            nonlocal said
            said = now
            share, left, text = latest
            words = f"  {label:<34} {share} {now - start:6.0f} s"
            self.console.print("  ".join(filter(None, (words, left, text))), soft_wrap=True)

        def show(done: float, total: float, text: str = "") -> None:
            nonlocal latest
            now = time.monotonic()
            left = estimate(done, total, now)
            step = f"step {estimate.step}" if estimate.step > 1 and total > 1 else ""
            beside = "  ".join(filter(None, (step, left)))
            self._live.update(task, completed=done, total=total if total > 1 else None, text=text[-48:], left=beside)
            share = f"{100 * done / total:3.0f} %" if total > 1 else ""
            latest = "  ".join(filter(None, (step, share))), left, text
            if self._live.disable and now - said >= _PLAIN_EVERY_S:
                line(now)

        def live() -> None:
            """Lines of a step that says nothing for long."""
            while not ended.wait(max(1.0, _PLAIN_EVERY_S)):
                now = time.monotonic()
                if now - said >= _PLAIN_EVERY_S:
                    line(now)

        ended, beat = threading.Event(), threading.Thread(target=live, daemon=True)
        if self._live.disable:
            beat.start()
        try:
            yield show
        finally:
            ended.set()
            self._live.remove_task(task)
        self.console.print(f"  {label:<34} done  {time.monotonic() - start:6.1f} s")
