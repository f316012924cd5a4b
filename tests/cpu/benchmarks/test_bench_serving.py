"""What bench_serving.py takes for a fault, of outcomes that were made up."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from serving_bench import report
from serving_bench.clients import Outcome
from serving_bench.memory import SAMPLES, growth

BLACK, WHITE = (np.full((8, 8, 3), value, np.uint8) for value in (0, 255))
ALONE = Outcome([Counter({b"black": 1}), Counter({b"white": 1})], {b"black": BLACK, b"white": WHITE})
STATISTICS = {"batches": {1: 2}, "batch_mean": 1.0, "queue_s": 0.0}


def made(**changed):
    """The figures of two requests that got what they should, but for what is changed."""
    outcome = Outcome([Counter({b"black": 1}), Counter({b"white": 1})], dict(ALONE.images), seconds=[1.0, 3.0])
    outcome.wall_s, outcome.memory = 4.0, {"server": [100.0] * SAMPLES}
    for name, value in changed.items():
        setattr(outcome, name, value)
    return report.row(2, outcome, ALONE, STATISTICS)


def test_figures_of_a_run_without_a_fault():
    row = made()
    assert report.faults(row, 0) == []
    assert row["pictures_per_s"] == 0.5 and row["latency_s"]["p50"] == 2.0
    assert " ".join(report.speed(row).split()) == "2 0.500 2.000 2.800 2.980 0.000 1.00 0 0 0 0.00"
    assert report.memory([row]).splitlines()[1].split() == ["2", "server", *["100.0"] * 10, "+0.0"]


FAULTS = {
    "lost": ({"lost": ["TimeoutError()"]}, "1 requests without an answer, the first: TimeoutError()"),
    "refused": ({"refused": ["no"]}, "1 requests that were refused, the first: no"),
    "spoilt": ({"spoilt": ["uint8 (8,)"]}, "1 answers that are no picture of the size asked for"),
    "malformed": ({"malformed": ["size: served"]}, "1 malformed requests that were not refused for what they are"),
    "exchanged": (
        {"answers": [Counter({b"white": 2}), Counter({b"white": 1})]},
        "2 pictures that are nearer to another request's",
    ),
    "memory": ({"memory": {"stubs": [*np.arange(SAMPLES, dtype=float)]}}, "memory of stubs grew by 30.0 MB, want at"),
}


@pytest.mark.parametrize("kind", FAULTS)
def test_faults_are_found(kind):
    changed, said = FAULTS[kind]
    (fault,) = report.faults(made(**changed), 20)
    assert fault.startswith(f"2 clients: {said}")


def test_rounding_is_counted_and_no_fault():
    near = BLACK.copy()
    near[0, 0] = 3
    row = made(answers=[Counter({b"near": 2}), Counter({b"white": 1})], images={b"near": near, b"white": WHITE})
    assert report.faults(row, 0) == []
    assert row["differing"] == 2 and row["largest_rms"] == pytest.approx(3 / 8)


def test_growth_is_that_from_the_second_fifth_to_the_last():
    warming, steady = [0.0] * (SAMPLES // 5), [500.0] * (SAMPLES * 4 // 5)
    assert growth(warming + steady) == 0
    assert growth(warming + steady[:-1] + [600.0]) == 10


def test_statistics_are_those_of_the_time_between():
    def seen(ones, fours, queued, ns):
        batches = [{"batch_size": size, "compute_infer": {"count": n}} for size, n in ((1, ones), (4, fours)) if n]
        return {"batch_stats": batches, "inference_stats": {"queue": {"count": queued, "ns": ns}}}

    got = report.since(seen(3, 0, 3, 10**9), seen(5, 2, 13, 6 * 10**9))
    assert got == {"batches": {1: 2, 4: 2}, "batch_mean": 2.5, "queue_s": 0.5}
