"""Rounds: whose turn it is, what the figures are of, and that all is freed whatever happens."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from svdq_trt.base.errors import SvdqError
from svdq_trt.bench.rounds import Measured, Prepared, Profile, measure
from tests.harness.stopped_clock import StoppedClock


class Runner:
    """Takes `ms(turn)` in each of its calls; notes its turns in `log`."""

    def __init__(self, name, clock, ms, log, fails=None):
        self.name, self.clock, self.ms, self.log, self.fails = name, clock, ms, log, fails
        self.calls = self.closed = 0

    def prepare(self):
        if self.fails:
            raise self.fails
        return Prepared(7, 1.0, None, {})

    def call(self):
        self.log.append(self.name)
        self.clock.cost = self.ms(self.calls)
        self.calls += 1

    def profile(self):
        self.log.append(f"{self.name}: profile")
        return Profile(None, {})

    def close(self):
        self.closed += 1


def test_turns_go_forwards_then_backwards_and_profiles_come_last():
    clock, log = StoppedClock(), []
    pair = [Runner(name, clock, lambda _: 1.0, log) for name in "ab"]
    measure(pair, clock, 3, 2, True, lambda _: None)
    assert log == [*"aabb", *"bbaa", *"aabb", "a: profile", "b: profile"]
    assert [one.closed for one in pair] == [1, 1]


def test_figures_are_numpys_over_all_calls():
    clock = StoppedClock()
    one, two = (Runner(n, clock, lambda i, f=f: f * (1.0 + i), []) for n, f in (("a", 1), ("b", 3)))
    first, second = measure([one, two], clock, 2, 5, False, lambda _: None)
    calls = np.arange(1.0, 11.0)
    assert first.latency_ms == {"median": 5.5, "p10": np.percentile(calls, 10), "p90": np.percentile(calls, 90)}
    assert second.ratio(first) == pytest.approx(3) and second.ratios(first) == pytest.approx([3, 3])
    assert [len(times) for times in first.rounds] == [5, 5] and first.profile is None


def test_a_drifting_clock_changes_no_ratio():
    """Every call makes the next 1 % slower, for both alike; one after the other the second would lose a fifth."""
    clock, log = StoppedClock(), []
    pair = [Runner(name, clock, lambda _: 1 + 0.01 * len(log), log) for name in "ab"]
    first, second = measure(pair, clock, 4, 10, False, lambda _: None)
    assert second.ratio(first) == pytest.approx(1, abs=0.01)
    assert max(second.ratios(first)) > 1.03 and min(second.ratios(first)) < 0.97


@pytest.mark.parametrize("error", [SvdqError("b", "bad", "good"), torch.OutOfMemoryError("CUDA out of memory")])
def test_all_are_closed_when_one_fails(error):
    clock = StoppedClock()
    pair = [Runner("a", clock, lambda _: 1.0, []), Runner("b", clock, lambda _: 1.0, [], error)]
    with pytest.raises(SvdqError, match=r"b: bad|svdq-trt bench: out of GPU memory, want room for all.*fewer at once"):
        measure(pair, clock, 1, 1, True, lambda _: None)
    assert [one.closed for one in pair] == [1, 1]


def test_a_ratio_is_of_time():
    first, second = (Measured("", Prepared(0, 0.0, None, {}), rounds=[[ms]]) for ms in (4.0, 3.0))
    assert second.ratio(first) == 0.75 and first.ratio(first) == 1
