"""What the user reads while a stage runs."""

from __future__ import annotations

import io
import re
import threading
from dataclasses import dataclass
from types import SimpleNamespace

from svdq_trt.build import summary, ui
from svdq_trt.build.console import Console
from svdq_trt.build.execute import Costs, Execution
from svdq_trt.build.process import Done, StageRunner
from svdq_trt.build.stage import Result, Stage
from svdq_trt.build.tables import print_table
from svdq_trt.build.ui import Estimate, Screen
from svdq_trt.engine import build
from svdq_trt.models import MODELS
from tests.harness.manifests import complete


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


def test_no_share_runs_backwards(monkeypatch):
    """What a stage says may begin anew; then it is another step, and says so."""
    now = iter(range(0, 10_000, 30))
    monkeypatch.setattr(ui.time, "monotonic", lambda: next(now))
    out = io.StringIO()
    calls = [(0, 1), (5, 50), (50, 50), (1, 100), (0, 1), (90, 100), (10, 100), (30, 100), (2, 4)]
    with Screen(Console(file=out, width=200)) as screen, screen.stage("quantize") as progress:
        for done, total in calls:
            progress(done, total, "x")
    shown = []
    for line in out.getvalue().splitlines()[:-1]:
        step, share = re.search(r"step (\d+)", line), re.search(r"(\d+) %", line)
        if share:  # a total of 1 says nothing about shares
            shown.append((int(step[1]) if step else 1, int(share[1])))
    assert shown == [(1, 10), (1, 100), (2, 1), (2, 90), (3, 10), (3, 30), (4, 50)]


def test_a_log_shows_life_while_a_stage_says_nothing(monkeypatch):
    waited = []

    class Ended(threading.Event):
        """Lets two waits pass, as 40 seconds would."""

        def wait(self, timeout=None):
            waited.append(timeout)
            return len(waited) > 2

    now = iter(range(0, 1000, 30))
    monkeypatch.setattr(ui, "threading", SimpleNamespace(Event=Ended, Thread=Inline))
    monkeypatch.setattr(ui.time, "monotonic", lambda: next(now))
    out = io.StringIO()
    with Screen(Console(file=out, width=200)) as screen, screen.stage("report"):
        pass
    assert [line.split() for line in out.getvalue().splitlines()][:2] == [["report", "30", "s"], ["report", "60", "s"]]
    assert waited == [20.0] * 3


class Inline:
    """A thread that has run when it was started."""

    def __init__(self, target, daemon):
        self.start = target


def test_bars_fit_into_eighty_columns():
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, color_system=None)
    with Screen(console) as screen, screen.stage("quantize  int4 rank 32") as progress:
        progress(1, 7)
        progress(50, 100, "transformer_blocks.17.attn.to_qkv  23.1 dB")
        progress(51, 100, "transformer_blocks.17.attn.to_qkv  23.1 dB")
        screen._live.refresh()
    assert "quantize  int4 rank 32" in out.getvalue() and "0:00:0" in out.getvalue() and "step 2" in out.getvalue()


def test_tables_are_whole_at_every_width():
    columns = ("engine", "format", "plan", "weights")
    rows = [
        ("sdxl-sm_89-with-a-long-name", "int4", "2.130 GB", "2.084 GB"),
        ("flux1-dev-sm_120", "nvfp4", "missing", "-"),
    ]
    for width in (20, 40, 80, 200):
        out = io.StringIO()
        print_table(Console(file=out, width=width, force_terminal=True, color_system=None), columns, rows)
        for row in rows:
            assert all(cell in out.getvalue() for cell in row), out.getvalue()
    out = io.StringIO()
    print_table(Console(file=out, width=20), columns, rows)  # a file has no width
    assert len([line for line in out.getvalue().splitlines() if line.strip()]) == 4


def test_models_and_results_are_whole_at_eighty_columns(tmp_path):
    out = io.StringIO()
    console = Console(file=out, width=80, force_terminal=True, color_system=None)
    summary.print_models(console)
    sizes = {
        "quantized_weight_bytes": 6_732_000_000,
        "fp16_weight_bytes": 23_802_000_000,
        "timings_s": {"plan": 2352.0},
    }
    plan = {"file": "model.plan", "bytes": 6_782_000_000, "sha256": ""}
    told = complete(model="flux1-schnell", rank=128, plan=plan, peak_rss_bytes={"build": 1}, **sizes)
    engine = SimpleNamespace(folder=tmp_path / "flux1-schnell-sm_120")
    summary.print_summary([SimpleNamespace(manifest=told, engine=engine, parts=())], console)
    printed = out.getvalue()
    for spec in MODELS.values():
        assert spec.name in printed and spec.title in printed
    for figure in ("flux1-schnell-sm_120", "6.782 GB", "6.732 GB", "23.802 GB", "not checked", "2352 s", "rank 128"):
        assert figure in printed, figure
    assert "…" not in printed


def test_an_encoder_of_which_4_bits_fit_a_part_says_so(tmp_path):
    kept, out = [{"name": "q_proj", "reason": "K = 96 is not a multiple of 64"}], io.StringIO()
    entry = {"name": "o_proj", "node": "o_proj", "format": "int4", "N": 64, "K": 64, "rank": 32, "sqnr_db": 20.0}
    entry |= {"activation": "", "alpha": 0.5, "beta": 0.5}
    parts = (complete(model="text", quantized=[entry], kept_16bit=kept), complete(model="vae", kept_16bit=kept))
    engine = SimpleNamespace(folder=tmp_path / "x-sm_89")
    told = complete(peak_rss_bytes={"build": 1})
    summary.print_summary([SimpleNamespace(manifest=told, engine=engine, parts=parts)], Console(file=out))
    lines = {
        name: next(line for line in out.getvalue().splitlines() if f" {name}," in line) for name in ("text", "vae")
    }
    assert "1 layers kept in 16 bit" in lines["text"] and "kept" not in lines["vae"]


def test_nested_phases_of_a_plan_are_one_share():
    shares = []
    trt = SimpleNamespace(IProgressMonitor=type("Monitor", (), {"__init__": lambda self: None}))
    monitor = build._make_monitor(trt, lambda done, total, text: shares.append(done / total))
    monitor.phase_start("Building", None, 2)
    for half in range(2):
        for name, steps in (("Fusing", 3), ("Timing", 10)):
            monitor.phase_start(name, "Building", steps)
            for step in range(steps):
                assert monitor.step_complete(name, step)
            monitor.phase_finish(name)
        monitor.step_complete("Building", half)
    assert shares == sorted(shares) and shares[-1] == 1 and 0.4 < shares[len(shares) // 2 - 1] <= 0.5
