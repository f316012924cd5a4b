"""Running a stage in a process of its own: events in, result or SvdqError out, memory and time measured."""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import threading
import time
import weakref
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import contextmanager, suppress
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


class _ForkServer:
    """The process that stages' processes are forked from (fork_server.py); it ends with this object."""

    def __init__(self, log: IO[str]) -> None:
        """`log` has why it could not even start."""
        self._requests, theirs = socket.socketpair()
        with theirs:
            self.process = subprocess.Popen(
                [*command("svdq_trt.build.fork_server"), str(theirs.fileno())],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[theirs.fileno()],
                env=environment(PYTHONUNBUFFERED="1"),
            )
        self.end = weakref.finalize(self, _end, self._requests, self.process)

    def start(self, stage: str, log: IO[str]) -> _Child:
        """Start the process of a stage, given as JSON, as soon as what it imports is there."""
        told, answer = os.pipe()
        seen, events = os.pipe()
        text = os.memfd_create("stage")
        try:
            os.pwrite(text, stage.encode(), 0)  # to be read from its beginning
            with suppress(BrokenPipeError):  # it has died; `wait` says how
                socket.send_fds(self._requests, [b"."], [text, events, log.fileno(), answer])
        finally:
            for file in (text, events, answer):
                os.close(file)
        return _Child(self.process, open(told, "rb", buffering=0), open(seen))


class _Child:
    """The process of a stage. events: the stream that it writes. pid: None where it could not be started."""

    def __init__(self, server: subprocess.Popen[bytes], told: IO[bytes], events: IO[str]) -> None:
        self._server, self._told, self.events = server, told, events
        self._code: int | None = None
        self._process: psutil.Process | None = None

    def started(self) -> psutil.Process | None:
        """Wait until it runs. Returns it, or None where it has ended."""
        line = self._told.readline()
        with suppress(psutil.NoSuchProcess):
            self._process = psutil.Process(int(line)) if line else None
        return self._process

    def wait(self, timeout: float | None = None) -> int | None:
        """Wait until it has ended. Returns its code, or None after `timeout` seconds."""
        if self._code is None and select.select([self._told], [], [], timeout)[0]:
            line = self._told.readline()
            self._code = int(line) if line else self._server.wait()  # without which no stage lives
        return self._code

    def send(self, number: int) -> None:
        """Send it a signal."""
        if self._process is not None:
            with suppress(psutil.NoSuchProcess):
                self._process.send_signal(number)

    def close(self) -> None:
        """Close its streams."""
        self._told.close()
        self.events.close()


def _end(requests: socket.socket, process: subprocess.Popen[bytes]) -> None:
    requests.close()
    process.kill()
    process.wait()


class StageRunner:
    """Runs stages, from several threads if need be, and can end all that are running.

    Attributes:
        fork_servers: ids of the processes that stages are forked from; their memory is the stages'.
    """

    def __init__(self) -> None:
        self.fork_servers: set[int] = set()
        self._server: _ForkServer | None = None
        self._starting = threading.Lock()
        self._children: set[_Child] = set()
        self._stopped = False

    def run(self, stage: Stage[R], log: Path, progress: Progress) -> Done[R]:
        """Run `stage` in a child process.

        Raises:
            SvdqError: the stage's own, or that it was killed (by a signal, for lack of memory).
            StageCrashError: a bug of ours; carries the last line of the log.
        """
        log.parent.mkdir(parents=True, exist_ok=True)
        start = time.monotonic()
        with open_own(log, "w") as log_file, self._started(stage, log_file) as (child, process):
            sampler = RssSampler(process)
            try:
                returned, error = _read_events(child.events, progress)
                code = child.wait()
            finally:
                if child.wait(0) is None:  # Ctrl-C, or an error of ours: let it remove its temporary files
                    child.send(signal.SIGTERM)
                    if child.wait(_GRACE_S) is None:
                        child.send(signal.SIGKILL)
                        child.wait()
                peak = sampler.stop()
        assert code is not None
        if error is not None:
            raise error
        if returned is None or code:
            _raise_for_exit(stage.name, code, log)
        assert returned is not None
        value, own_peak = returned
        result: R | None = None if value is None else from_builtins(value, stage.result)  # type: ignore[assignment]
        peak = max(peak, own_peak)  # the child's own figure: short stages end between two samples
        return Done(result, time.monotonic() - start, peak)

    @contextmanager
    def _started(self, stage: Stage[R], log: IO[str]) -> Iterator[tuple[_Child, psutil.Process | None]]:
        """Context with the stage's process, and what it is to psutil unless it has ended."""
        with self._starting:
            if self._server is None or self._server.process.poll() is not None:
                self._server = _ForkServer(log)
                self.fork_servers.add(self._server.process.pid)
            server = self._server
            child = server.start(stage.to_json(), log)
        try:
            try:
                process = child.started()
            except BaseException:  # Ctrl-C: it must not start any more
                server.end()
                raise
            self._children.add(child)
            if self._stopped:  # stop() may have come before the child was known
                child.send(signal.SIGKILL)
            yield child, process
        finally:
            self._children.discard(child)
            child.close()

    def stop(self) -> None:
        """End every running stage; none can start after it."""
        self._stopped = True
        for child in list(self._children):
            child.send(signal.SIGKILL)


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

    def __init__(self, process: psutil.Process | None, without: Collection[int] = ()) -> None:
        """`process` is the tree's root, None if it has ended. without: processes that are not counted."""
        super().__init__(daemon=True)
        self._process, self._without = process, without
        self._peak, self._done = 0, threading.Event()
        self.start()

    def run(self) -> None:
        """Sample until stopped."""
        while self._process is not None:
            self._peak = max(self._peak, self._resident(self._process))
            if self._done.wait(_SAMPLE_S):
                return

    def _resident(self, root: psutil.Process) -> int:
        """Bytes of the whole tree now; any process in it may end in the meantime."""
        total = 0
        try:
            tree = [root, *root.children(recursive=True)]
        except psutil.Error:
            return 0
        for process in tree:
            if process.pid not in self._without:
                with suppress(psutil.Error):
                    total += process.memory_info().rss
        return total

    def stop(self) -> int:
        """Stop and return the peak in bytes."""
        self._done.set()
        self.join()
        return self._peak
