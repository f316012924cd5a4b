"""Running a stage in a process of its own: events in, result or SvdqError out, memory and time measured."""

from __future__ import annotations

import contextlib
import subprocess
import threading
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Generic, TypeVar

import psutil

from svdq_trt.base.child import command, environment
from svdq_trt.base.errors import EXIT_BUG, SvdqError, rebuild_error
from svdq_trt.base.files import open_own
from svdq_trt.base.progress import Progress
from svdq_trt.build.events import parse
from svdq_trt.build.stage import Result, Stage, from_builtins

_SAMPLE_S = 0.25  # a sample takes 3 ms: psutil looks at every process of the machine
_GRACE_S = 5.0


R = TypeVar("R", bound=Result)


@dataclass(frozen=True)
class Done(Generic[R]):
    """The result of a stage (None from a rank that only helped) and its cost."""

    value: R | None
    seconds: float
    peak_rss_bytes: int  # peak of its process tree


class StageCrashError(RuntimeError):
    """A stage ended with a bug of ours; its log has the traceback."""


class StageRunner:
    """Runs stages, from several threads if need be, and can end all that are running."""

    def __init__(self) -> None:
        self._children: set[subprocess.Popen[str]] = set()
        self._stopped = False

    def run(self, stage: Stage[R], log: Path, progress: Progress) -> Done[R]:
        """Run `stage` in a child process.

        Raises:
            SvdqError: the stage's own, or that it was killed (by a signal, for lack of memory).
            StageCrashError: a bug of ours; carries the last line of the log.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        with open_own(log, "w") as log_file:
            child = subprocess.Popen(
                command("svdq_trt.build.worker"),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log_file,
                text=True,
                env=environment(PYTHONUNBUFFERED="1"),
            )
            self._children.add(child)
            if self._stopped:  # stop() may have come before the child was known
                child.kill()
            sampler = RssSampler(child.pid)
            try:
                assert child.stdin and child.stdout
                with suppress(BrokenPipeError):  # it has died already; its exit code says why
                    child.stdin.write(stage.to_json())
                    child.stdin.close()
                returned, error = _read_events(child.stdout, progress)
                code = child.wait()
            finally:
                if child.poll() is None:  # Ctrl-C, or an error of ours: let it remove its temporary files
                    child.terminate()
                    with suppress(subprocess.TimeoutExpired):
                        child.wait(_GRACE_S)
                    child.kill()
                    child.wait()
                self._children.discard(child)
                peak = sampler.stop()
        if error is not None:
            raise error
        if returned is None or code:
            _raise_for_exit(stage.name, code, log)
        assert returned is not None
        value, own_peak = returned
        result: R | None = None if value is None else from_builtins(value, stage.result)  # type: ignore[assignment]
        peak = max(peak, own_peak)  # the child's own figure: short stages end between two samples
        return Done(result, time.monotonic() - start, peak)

    def stop(self) -> None:
        """End every running stage; none can start after it."""
        self._stopped = True
        for child in list(self._children):
            child.kill()


def _read_events(pipe: IO[str], progress: Progress) -> tuple[tuple[Any, int] | None, SvdqError | None]:
    """The stage's result and its own peak memory, or its error; both None where it reported neither."""
    returned: tuple[Any, int] | None = None
    error: SvdqError | None = None
    for line in pipe:
        event = parse(line)
        if event is None:
            continue
        if "progress" in event:
            progress(*event["progress"])
        elif "result" in event:
            returned = event["result"], event["peak_rss_bytes"]
        elif "error" in event:
            error = rebuild_error(event["error"])
    return returned, error


def _raise_for_exit(stage: str, code: int, log: Path) -> None:
    with log.open(errors="replace") as file:
        tail = deque((line.strip() for line in file if line.strip()), maxlen=1)
    last = tail[0] if tail else "(empty log)"
    if code < 0:
        cause = "killed (signal 9, often lack of memory)" if code == -9 else f"ended by signal {-code}"
        raise SvdqError(f"stage '{stage}'", cause, "it to finish", f"Last log line: {last}. Log: {log}")
    raise StageCrashError(f"stage '{stage}' failed with exit code {code or EXIT_BUG}: {last}. Log: {log}")


class RssSampler(threading.Thread):
    """Peak resident memory of a process tree, sampled."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._process, self._peak, self._done = psutil.Process(pid), 0, threading.Event()
        self.start()

    def run(self) -> None:
        """Sample until stopped."""
        while True:
            self._peak = max(self._peak, self._resident())
            if self._done.wait(_SAMPLE_S):
                return

    def _resident(self) -> int:
        """Bytes of the whole tree now; any process in it may end in the meantime."""
        total = 0
        try:
            tree = [self._process, *self._process.children(recursive=True)]
        except psutil.Error:
            return 0
        for process in tree:
            with contextlib.suppress(psutil.Error):
                total += process.memory_info().rss
        return total

    def stop(self) -> int:
        """Stop and return the peak in bytes."""
        self._done.set()
        self.join()
        return self._peak
