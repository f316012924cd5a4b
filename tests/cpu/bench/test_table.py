"""The table's width and figures, the notes below it, and the JSON."""

from __future__ import annotations

import json

import pytest

from svdq_trt.bench.kinds import by_kind
from svdq_trt.bench.rounds import Measured, Prepared, Profile
from svdq_trt.bench.table import WIDTH, fastest, table, to_json

LONG = "/home/somebody/engines/of-the-second-week/flux1-dev-sm_120"
KERNELS = [("flash_fwd", 3000.0, 0.0), ("svdq::gemm", 1000.0, 4000.0)]


def measured(name, *rounds, reopen=3.25, kernels=KERNELS, notes=()):
    parts = Profile(by_kind(kernels) if kernels else None, {"layer": 0.5})
    return Measured(name, Prepared(7_240_000_000, 20.0, reopen, {"attention": "plugin"}, notes), parts, list(rounds))


def test_a_line_has_the_figures():
    lines = table([measured("engines/a", [100.0, 102.0]), measured("engines/b", [80.0, 82.0])])
    assert lines[0].split() == ["ms", "median", "p10", "p90", "ratio", "GPU", "GB", "open", "s", "reopen"]
    assert lines[1].split() == ["A", "engines/a", "101.000", "100.200", "101.800", "1.000", "7.24", "20.0", "3.2"]
    assert lines[2].split()[:6] == ["B", "engines/b", "81.000", "80.200", "81.800", "0.802"]
    assert "attention                    3.000  75.0 %     3.000  75.0 %" in lines
    assert "ours: product                1.000  25.0 %     1.000  25.0 %" in lines
    assert not any(line.startswith(("rotary", "gaps")) for line in lines), "nothing of that kind ran"
    assert lines[-1] == "B takes 0.802 of A's time, 0.802 to 0.802 by round."


@pytest.mark.parametrize("count", [1, 2, 5, 8])
def test_every_line_fits(count):
    found = [
        measured(f"{LONG}-{i}", [12345.678], [12345.678 + i], kernels=KERNELS if i else [], notes=(f"{LONG}: said",))
        for i in range(count)
    ]
    lines = table(found)
    assert max(len(line) for line in lines) <= WIDTH
    assert [line[0] for line in lines[1 : count + 1]] == list("ABCDEFGH"[:count])
    assert all(line[2:24].strip().endswith(f"sm_120-{i}") for i, line in enumerate(lines[1 : count + 1]))
    assert "No kernels of A: torch's profiler sees none here (CUPTI)." in lines


def test_rounds_that_disagree_are_said():
    lines = table([measured("a", [10.0], [10.0]), measured("b", [9.0], [10.5]), measured("c", [8.0], [8.5])])
    text = " ".join(" ".join(lines).split())
    assert "B takes 0.975 of A's time, 0.900 to 1.050 by round. The rounds disagree on which is faster." in text
    assert text.endswith("C takes 0.825 of A's time, 0.800 to 0.850 by round.")


def test_the_fastest_has_the_lowest_median():
    one, two, three = measured("a", [5.0, 1.0, 5.0]), measured("b", [4.0, 4.0, 9.0]), measured("c", [4.0])
    assert fastest([one, two, three]) is two


def test_json_has_all_of_it():
    found = [measured("a", [100.0], [110.0]), measured("torch.compile fp8", [50.0], [60.0], reopen=None)]
    first, second = json.loads(json.dumps(to_json(found), allow_nan=False))
    assert first["latency_ms"] == {"median": 105, "p10": 101, "p90": 109} and first["ratio"] == 1
    assert first["memory_bytes"] == 7_240_000_000 and first["layers_ms"] == {"layer": 0.5}
    assert first["attention"] == "plugin" and first["reopen_s"] == 3.25 and first["rounds_ms"] == [[100], [110]]
    assert first["kernels"]["attention"] == {"count": 1, "ms": 3} and first["kernels"]["gaps"]["ms"] == 1
    assert second["ratio"] == 0.5238 and second["ratio_by_round"] == [0.5, 0.5455] and second["reopen_s"] is None


def test_without_a_profile_there_are_no_kinds():
    one = measured("a", [1.0])
    one.profile = None
    assert len(table([one])) == 2 and to_json([one])[0]["kernels"] is None
