"""The step cache of an engine in pieces: a step that begins as the last computed one did takes its blocks from there.

With x0 and x1 the tokens before and behind a transformer's first block, and x2 those behind its last one: a step is
skipped while r = x1 - x0 differs from the last computed step's by mean|r - r'| / mean|r'| <= threshold. So decides the
first-block cache that diffusers has as FirstBlockCacheConfig, which then takes c = x2 - x1 to be c'. Here c goes on as
r does: with r'' and c'' of the computed step before,

    c = c' + k (c' - c''),  k = <r - r', r' - r''> / <r' - r'', r' - r''> from 0 to 2, and 0 with one computed step.

On pictures of a small trained model that is 4 to 7 dB nearer at equal numbers of computed steps (docs/evidence.md).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import Any

from svdq_trt.base.errors import UnsupportedError, UsageError
from svdq_trt.runtime.shapes import Shapes, is_tensor

MOST_AHEAD = 2.0  # the largest k: how many steps between computed ones may be looked ahead


@dataclass(frozen=True)
class _Kept:
    """Of a computed step: r' and its size, c', the shapes of the model's inputs, and where r and c were going."""

    residual: Any
    size: float
    change: Any
    shapes: Shapes
    course: _Course | None

    def is_near(self, moved: Any, threshold: float) -> bool:
        """Whether r - r' is relatively at most that; never where r or r' has a NaN, or r' is zero."""
        return bool(self.size) and _size(moved) / self.size <= threshold

    def change_at(self, moved: Any) -> Any:
        """What c of a step that is skipped is taken to be, by its r - r'."""
        return self.change if self.course is None else self.change + self.course.ahead(moved)


@dataclass(frozen=True)
class _Course:
    """From one computed step to the next: r' - r'' and its square's sum, and c' - c''."""

    residual: Any
    square: Any
    change: Any

    @classmethod
    def of(cls, residual: Any, change: Any) -> _Course:
        """By the first and the last of them."""
        return cls(residual, _dot(residual, residual), change)

    def ahead(self, moved: Any) -> Any:
        """K (c' - c'') at r - r'. Of tensors on a GPU the host does not wait for k."""
        # 1e-30: where r did not move, its products are 0 as well
        k = (_dot(moved, self.residual) / (self.square + 1e-30)).clip(0, MOST_AHEAD)
        return (k if is_tensor(k) else float(k)) * self.change


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
        if kept is not None and kept.shapes != shapes:
            kept = None
        moved = None if kept is None else residual - kept.residual
        if kept is not None and kept.is_near(moved, self.threshold):
            self.skipped += 1
            return x1 + kept.change_at(moved)
        x2 = compute()
        change = x2 - x1
        course = None if kept is None else _Course.of(moved, change - kept.change)
        copy = residual.clone() if is_tensor(residual) else residual.copy()
        self._kept[cache] = _Kept(copy, _size(copy), change, shapes, course)
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


def _size(value: Any) -> float:
    """The mean of |value|, in float32; of a tensor on a GPU the host waits for it."""
    return float(_float32(abs(value)).mean())


def _dot(a: Any, b: Any) -> Any:
    """The sum of a b, in float32: a tensor of no axes, or a number of numpy."""
    return (_float32(a) * _float32(b)).sum()


def _float32(value: Any) -> Any:
    return value.float() if is_tensor(value) else value.astype("float32")
