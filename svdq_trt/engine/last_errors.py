"""The end of TensorRT's error log, as one line for a person."""

from __future__ import annotations

from collections import deque


class LastErrors:
    """The last errors that a TensorRT logger saw."""

    def __init__(self) -> None:
        self._messages: deque[str] = deque(maxlen=16)

    def add(self, message: str) -> None:
        """Remember an error message."""
        self._messages.append(message)

    def clear(self) -> None:
        """Forget all errors: those that follow belong to the next call."""
        self._messages.clear()

    def __str__(self) -> str:
        """Our plugin's own message if there is one, else the last, on one line; empty without errors."""
        ours = [m for m in self._messages if "svdq" in m.lower()]
        return " ".join((ours or list(self._messages) or [""])[-1].split())
