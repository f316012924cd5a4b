"""The callback by which long work reports its progress."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """The callback of a stage: `done` of `total` steps, and what it is working on."""

    def __call__(self, done: float, total: float, text: str = "") -> None:
        """Report; cheap enough to call per layer."""
