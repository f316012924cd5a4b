"""How long work reports where it is."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """What a stage calls: `done` of `total` steps, and what it is at now."""

    def __call__(self, done: float, total: float, text: str = "") -> None:
        """Report; cheap enough to call per layer."""
