"""The end of TensorRT's error log, as one line for a person."""

from __future__ import annotations

import threading
from collections import deque


class LastErrors:
    """The last errors that a TensorRT logger saw; a thread reads its own, as engines may be opened side by side."""

    def __init__(self) -> None:
        self._messages: deque[tuple[int, str]] = deque(maxlen=16)  # the thread's number with each

    def add(self, message: str) -> None:
        """Remember an error message."""
        self._messages.append((threading.get_ident(), message))

    def clear(self) -> None:
        """Forget all errors: those that follow belong to the next call."""
        self._messages.clear()

    def __str__(self) -> str:
        """Our plugin's own message if there is one, else the last, on one line; empty without errors.

        Those of this thread, or of all where it has none: TensorRT has threads of its own.
        """
        seen, here = list(self._messages), threading.get_ident()
        messages = [m for thread, m in seen if thread == here] or [m for _, m in seen]
        ours = [m for m in messages if "svdq" in m.lower()]
        return " ".join((ours or messages or [""])[-1].split())
