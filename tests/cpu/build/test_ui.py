"""What the user reads while a stage runs."""

from __future__ import annotations

import io
from dataclasses import dataclass

from svdq_trt.build import ui
from svdq_trt.build.console import Console
from svdq_trt.build.execute import Costs, Execution
from svdq_trt.build.process import Done, StageRunner
from svdq_trt.build.stage import Result, Stage
from svdq_trt.build.ui import Estimate, Screen


def test_estimate_follows_the_work_done_in_this_step():
    left = Estimate()
    assert left(10, 40, 100.0) == ""  # the first call says nothing about speed
    assert left(11, 40, 101.0) == ""  # too early
    assert left(20, 40, 110.0) == "0:20 min left"
    assert left(25, 40, 190.0) == "1:30 min left"
    assert left(40, 40, 200.0) == ""


def test_estimate_begins_anew_with_each_step():
    left = Estimate()
    left(0, 100, 0.0)
    assert left(50, 100, 10.0) == "0:10 min left"
    assert left(1, 7, 11.0) == ""
    assert left(2, 7, 21.0) == "0:50 min left"
    assert left(1, 7, 30.0) == ""  # the same total again: done fell


def test_lines_of_a_log_have_share_estimate_and_text(monkeypatch):
    now = iter(range(0, 1000, 30))
    monkeypatch.setattr(ui.time, "monotonic", lambda: next(now))
    out = io.StringIO()
    with Screen(Console(file=out, width=200)) as screen, screen.stage("quantize") as progress:
        progress(1, 4, "a")
        progress(2, 4, "b")
    first, second, last = out.getvalue().splitlines()
    assert first.split() == ["quantize", "25", "%", "30", "s", "a"]
    assert second.split() == ["quantize", "50", "%", "60", "s", "1:00", "min", "left", "b"]
    assert last.split()[:2] == ["quantize", "done"]


@dataclass(frozen=True)
class Probe(Stage[Result]):
    """A stage that says something."""

    name = "probe"
    result = Result
    label = "import"

    def run(self, progress):
        self.out.write_text("")
        return Result(notes=("signed codes assumed",))


class InProcess(StageRunner):
    """Runs stages in this process: these tests are about what the user reads."""

    def run(self, stage, log, progress):
        return Done(stage.run(progress), 1.0, 1)


def test_notes_of_a_stage_are_reported_also_when_it_is_reused(tmp_path):
    out = io.StringIO()
    execution = Execution(Screen(Console(file=out, width=200)), InProcess(), tmp_path)
    for _ in range(2):
        costs = Costs()
        assert execution.run(Probe(out=tmp_path / "x"), costs) == Result(notes=("signed codes assumed",))
        assert (costs.seconds, costs.peak_rss) == ({"probe": 1.0}, {"probe": 1})
    done, note, reused, again = (line.split() for line in out.getvalue().splitlines())
    assert done[:2] == ["import", "done"] and reused == ["import", "reused"]
    assert note == again == ["signed", "codes", "assumed"]
