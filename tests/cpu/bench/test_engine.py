"""An engine's two openings, its memory, and what it is fed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from svdq_trt.artifact.manifest import TensorProfile
from svdq_trt.bench.engine import EngineContender
from tests.harness.manifests import complete
from tests.harness.stopped_clock import StoppedClock, StoppedSession, no_leak

PROFILES = [TensorProfile("x", "bfloat16", (1, 4), (2, 4), (4, 4)), TensorProfile("i", "int64", (1,), (1,), (1,))]


@pytest.fixture
def clock():
    return StoppedClock()


def contender(clock, opened, filled=False, keeps=True, backend="tensorrt-rtx"):
    """Keeps a runtime cache from its first opening on, if it `keeps` one; full TensorRT has none."""
    state = {"filled": filled}

    def session(cached):
        hit = cached and state["filled"]
        opened.append(StoppedSession(clock, PROFILES, 3.0, hit, opening=20.0, size=5_000_000_000))
        state["filled"] |= cached and keeps
        return opened[-1]

    feed = {"x": np.full((2, 4), 1.001, np.float32), "i": np.array([7])}
    data = complete(backend={"name": backend, "version": "9"}, attention="plugin")
    return EngineContender("engines/one", data, feed, session, clock)


@pytest.mark.parametrize("filled", [False, True], ids=["new", "opened before"])
def test_both_openings_are_seen_whatever_was_cached(clock, filled):
    opened = []
    with no_leak(clock):
        one = contender(clock, opened, filled)
        made = one.prepare()
        assert (made.open_s, made.reopen_s) == (23.5, 3.5) and not made.notes
        assert made.facts["open"]["compiled"] and not made.facts["reopen"]["compiled"]
        assert made.facts["open"]["context_s"] == 20 and made.facts["reopen"]["first_run_s"] == 0.5
        assert len(opened) == 2 and opened[0].closed and not opened[1].closed
        assert made.memory_bytes == 5_000_000_000
        one.close()
    assert opened[1].closed


def test_a_cache_that_is_not_kept_is_said(clock):
    made = contender(clock, [], keeps=False).prepare()
    assert made.open_s == made.reopen_s == 23.5
    (note,) = made.notes
    assert note == "engines/one: keeps no runtime cache, so it is compiled at each opening. Is it writable?"
    assert not contender(clock, [], keeps=False, backend="tensorrt").prepare().notes


def test_inputs_have_the_engines_dtypes(clock):
    opened = []
    contender(clock, opened).prepare()
    inputs, graph = opened[1].fed[-1]
    assert inputs["x"].dtype == torch.bfloat16 and inputs["i"].dtype == torch.int64 and graph
    assert torch.equal(inputs["x"], torch.full((2, 4), 1.001).bfloat16()) and inputs["i"].tolist() == [7]


def test_the_profile_is_of_calls_outside_a_graph(clock):
    opened = []
    one = contender(clock, opened)
    one.prepare()
    clock.seen = [("_gemm_mha_v2_0x3", 700.0, 0.0)]
    parts = one.profile()
    assert parts.kinds["attention"] == {"count": 1, "ms": 0.7} and parts.layers_ms == {"layer": 1.23457}
    assert [graph for _, graph in opened[1].fed] == [True, True, False, False]
    clock.seen = []
    assert one.profile().kinds is None


def test_facts_say_which_engine_it_was(clock):
    facts = contender(clock, []).prepare().facts
    assert (facts["attention"], facts["backend"], facts["arch"]) == ("plugin", "tensorrt-rtx 9", "sm_89")
