"""The step cache of an engine in pieces: a step that begins as the last computed one did takes its blocks from there.

With x0 and x1 the tokens before and behind a transformer's first block, and x2 those behind its last one: a step is
skipped while r = x1 - x0 differs from the last computed step's by mean|r - r'| / mean|r'| <= threshold. It then has
x2 = x1 + (x2' - x1'). This is the first-block cache that diffusers has as FirstBlockCacheConfig.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from svdq_trt.base.errors import UnsupportedError, UsageError
from svdq_trt.runtime.shapes import Shapes, is_tensor


@dataclass(frozen=True)
class _Kept:
    """Of a computed step: r and its size, x2 - x1, and the shapes of the model's inputs."""

    residual: Any
    size: float
    change: Any
    shapes: Shapes


class StepCache:
    """The caches of one session. Arrays are torch tensors or numpy arrays.

    Attributes:
        threshold: 0 computes every step. skipped: steps that were skipped since it was set.
    """

    def __init__(self) -> None:
        self.threshold, self.skipped = 0.0, 0
        self._kept: dict[Hashable, _Kept] = {}

    def reset(self) -> None:
        """Forget all steps."""
        self._kept = {}

    def x2(self, cache: Hashable, shapes: Shapes, residual: Any, x1: Any, compute: Callable[[], Any]) -> Any:
        """x2 of a step, by `compute` or from an earlier step.

        Args:
            cache: whose steps follow each other. shapes: of the model's inputs.
            residual: r. Like x1 it may be memory that the next step overwrites.
        """
        kept = self._kept.get(cache)
        if kept is not None and kept.shapes == shapes and _is_near(residual, kept, self.threshold):
            self.skipped += 1
            return x1 + kept.change
        x2 = compute()
        copy = residual.clone() if is_tensor(residual) else residual.copy()
        self._kept[cache] = _Kept(copy, _size(copy), x2 - x1, shapes)
        return x2


def check_step_cache(threshold: float, in_pieces: bool) -> None:
    """Check what is asked of an engine's step cache.

    Raises:
        UnsupportedError: a threshold for an engine that was built without --step-cache, and so is in one piece.
        UsageError: one below 0, or no number.
    """
    if not (math.isfinite(threshold) and threshold >= 0):
        raise UsageError("step_cache", str(threshold), "a number from 0 on, such as 0.1")
    if threshold and not in_pieces:
        got, want = "an engine in one piece", "one that was built with --step-cache"
        raise UnsupportedError("step_cache", got, want, "Build it again with it.")


class StepCached:
    """What a session offers of its step cache; `_steps` is None where the engine is in one piece."""

    _steps: StepCache | None = None

    @property
    def step_cache(self) -> float:
        """The largest relative change of the first block's residual at which a step is skipped; 0: none is.

        Raises:
            UnsupportedError, UsageError: set to what `check_step_cache` refuses.
        """
        return 0.0 if self._steps is None else self._steps.threshold

    @step_cache.setter
    def step_cache(self, threshold: float) -> None:
        check_step_cache(threshold, in_pieces=self._steps is not None)
        if threshold or self.step_cache:
            steps = self._cached_steps()
            steps.threshold, steps.skipped = float(threshold), 0
            steps.reset()

    @property
    def skipped(self) -> int:
        """Number of runs, since `step_cache` was set, that took the blocks from an earlier one."""
        return 0 if self._steps is None else self._steps.skipped

    def reset(self) -> None:
        """Forget the steps of the last picture: the next run is computed. Needed before the first step of another."""
        if self._steps is not None:
            self._steps.reset()

    def _cached_steps(self) -> StepCache:
        """The cache of an engine in pieces."""
        assert self._steps is not None
        return self._steps


def _is_near(residual: Any, last: _Kept, threshold: float) -> bool:
    """Whether the residual changed by at most that, relatively; never where one has a NaN, or the last was zero."""
    return bool(last.size) and _size(residual - last.residual) / last.size <= threshold


def _size(value: Any) -> float:
    """The mean of |value|, in float32; of a tensor on a GPU the host waits for it."""
    value = abs(value)
    return float((value.float() if is_tensor(value) else value.astype("float32")).mean())
