"""Stages in processes: results, errors, crashes and the messages about them."""

from __future__ import annotations

import importlib
import os
import pickle
import sys
import textwrap

import pytest

from svdq_trt.base.errors import ArtifactError, SvdqError, rebuild_error
from svdq_trt.base.memory import out_of_memory
from svdq_trt.build import process, worker

HEAD = """
from dataclasses import dataclass
from svdq_trt.build.stage import Result, Stage

@dataclass(frozen=True)
class Twice(Result):
    twice: int

@dataclass(frozen=True)
class Probe(Stage[Twice]):
    name = "probe"
    result = Twice
    x: int = 0
    label = "probe"
"""


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Run a one-off stage, given the body of its `run`."""

    def run(body: str, x: int = 0, progress=lambda *a: None):
        site = tmp_path / "site"
        site.mkdir()
        (site / "probe.py").write_text(f"{HEAD}\n    def run(self, progress):\n{textwrap.indent(body, ' ' * 8)}\n")
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
        monkeypatch.syspath_prepend(str(site))
        sys.modules.pop("probe", None)
        probe = importlib.import_module("probe").Probe(x, out=tmp_path / "out")
        return process.StageRunner().run(probe, tmp_path / "probe.log", progress)

    yield run
    sys.modules.pop("probe", None)


def test_result_progress_time_and_memory_come_back(stage):
    seen = []
    body = "progress(1, 2, 'half')\nprint('noise')\nreturn Twice(2 * self.x, notes=('slow',))"
    done = stage(body, 4, lambda *a: seen.append(a))
    assert (done.value.twice, done.value.notes) == (8, ("slow",)) and seen == [(1, 2, "half")]
    assert done.seconds > 0 and done.peak_rss_bytes > 10e6


def test_a_rank_that_only_helped_returns_nothing(stage):
    assert stage("return None").value is None


def test_user_error_keeps_type_and_text(stage):
    with pytest.raises(ArtifactError, match=r"f: got, want a b. Fix it\."):
        stage("from svdq_trt.base.errors import ArtifactError as E\nraise E('f','got','a b','Fix it.')")


def test_abort_becomes_one_sentence(stage):
    with pytest.raises(SvdqError, match="ended by signal 6"):
        stage("import os\nos.abort()")


def test_bug_names_the_log(stage):
    with pytest.raises(process.StageCrashError, match=r"ZeroDivisionError.*probe\.log"):
        stage("return 1 / 0")


def test_full_disk_is_a_user_error(stage):
    with pytest.raises(SvdqError, match="No space left"):
        stage("import errno\nraise OSError(errno.ENOSPC, 'No space left on device', '/x/y')")


def test_lack_of_memory_is_a_user_error(stage):
    with pytest.raises(SvdqError, match=r"stage 'probe': out of memory, want more RAM\. Close other programs\.$"):
        stage("raise MemoryError")


def test_lack_of_memory_is_reported_in_every_librarys_words():
    for words in (
        "[ONNXRuntimeError] : 1 : FAIL : Failed to allocate memory for requested buffer of size 9",
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc",
        "unable to mmap 9 bytes: Cannot allocate memory (12)",
    ):
        assert "out of memory" in str(out_of_memory("x", RuntimeError(words)))
    assert "out of GPU memory" in str(out_of_memory("x", RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling")))
    assert out_of_memory("x", RuntimeError("Storage size calculation overflowed")) is None


def test_way_out_of_lack_of_memory_is_one_that_the_stage_has():
    names = ("reference_export", "check_run", "quantize")
    errors = {name: str(worker.user_error(name, MemoryError())) for name in names}
    assert [name for name, text in errors.items() if "or use --no-check" in text] == ["reference_export", "check_run"]


def test_unknown_error_type_from_a_child_is_still_a_user_error():
    error = rebuild_error({"type": "os", "where": "w", "got": "g", "want": "x", "fix": ""})
    assert type(error) is SvdqError


def test_an_error_goes_through_a_pool_as_it_is():
    error = pickle.loads(pickle.dumps(ArtifactError("model.plan", "missing", "a plan", "Build it.")))
    assert (type(error), str(error)) == (ArtifactError, "model.plan: missing, want a plan. Build it.")
