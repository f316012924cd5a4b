"""The line protocol between a stage's process and its parent, which shows progress.

One JSON object per line on a pipe:
    {"progress": [done, total, text]}       {"result": {...}, "peak_rss_bytes": ...}       {"error": {...}}
"""

from __future__ import annotations

import json
import sys
from typing import Any, TextIO

from svdq_trt.base.errors import SvdqError, error_fields
from svdq_trt.base.terminal import say


class Emitter:
    """The child's side: writes events to a stream."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def progress(self, done: float, total: float, text: str = "") -> None:
        """Report progress; cheap enough to call per layer."""
        self._send({"progress": [done, total, text]})

    def result(self, value: Any, peak_rss_bytes: int) -> None:
        """Write the stage's result and the child's own peak memory, the last line of a good run."""
        self._send({"result": value, "peak_rss_bytes": peak_rss_bytes})

    def error(self, error: SvdqError) -> None:
        """Write a user error, to be raised again by the parent."""
        self._send({"error": error_fields(error)})

    def _send(self, event: dict[str, Any]) -> None:
        self._stream.write(json.dumps(event) + "\n")
        self._stream.flush()


def parse(line: str) -> dict[str, Any] | None:
    """Parse one event; None for any other line (a library printing to our pipe)."""
    try:
        event = json.loads(line)
    except ValueError:
        say(line.rstrip(), file=sys.stderr)
        return None
    return event if isinstance(event, dict) else None
