"""The line protocol between a stage's process and the one that shows progress.

One JSON object per line on a pipe:
    {"progress": [done, total, text]}       {"result": {...}}       {"error": {...}}
"""

from __future__ import annotations

import json
import sys
from typing import Any, Protocol, TextIO

from svdq_trt import errors

PEAK_RSS = "_peak_rss_bytes"  # key of a result that carries the child's own peak memory


class Progress(Protocol):
    """What a stage calls: `done` of `total` steps, and what it is at now."""

    def __call__(self, done: float, total: float, text: str = "") -> None:
        """Report; cheap enough to call per layer."""


class Emitter:
    """Child side: writes events to a stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def progress(self, done: float, total: float, text: str = "") -> None:
        """Report progress; cheap enough to call per layer."""
        self._send({"progress": [done, total, text]})

    def result(self, value: dict[str, Any]) -> None:
        """The stage's result, last line of a good run."""
        self._send({"result": value})

    def error(self, error: errors.SvdqError) -> None:
        """A user error, to be raised again by the parent."""
        self._send({"error": error_fields(error)})

    def _send(self, event: dict[str, Any]) -> None:
        self._stream.write(json.dumps(event) + "\n")
        self._stream.flush()


def error_fields(error: errors.SvdqError) -> dict[str, str]:
    """A user error as JSON, for `rebuild_error`."""
    return {"type": type(error).__name__, "where": error.where, "got": error.got, "want": error.want, "fix": error.fix}


def rebuild_error(fields: dict[str, str]) -> errors.SvdqError:
    """The SvdqError that `error_fields` described in another process."""
    kind = getattr(errors, fields["type"], errors.SvdqError)
    if not (isinstance(kind, type) and issubclass(kind, errors.SvdqError)):
        kind = errors.SvdqError
    error: errors.SvdqError = kind(fields["where"], fields["got"], fields["want"], fields["fix"])
    return error


def parse(line: str) -> dict[str, Any] | None:
    """One event, or None for a line that is none (a library printing to our pipe)."""
    try:
        event = json.loads(line)
    except ValueError:
        print(line.rstrip(), file=sys.stderr)
        return None
    return event if isinstance(event, dict) else None
