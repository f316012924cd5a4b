"""Stages in processes: results, errors, crashes and the messages about them."""

from __future__ import annotations

import gc
import importlib
import itertools
import os
import pickle
import subprocess
import sys
import textwrap
import threading
import time

import psutil
import pytest

from svdq_trt.base.errors import ArtifactError, SvdqError, rebuild_error
from svdq_trt.base.memory import out_of_memory
from svdq_trt.build import fork_server, process, worker

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
    """Run a one-off stage, given the bodies of its `run` and `imports`."""
    site = tmp_path / "site"
    site.mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(site), os.environ.get("PYTHONPATH", "")]))
    monkeypatch.syspath_prepend(str(site))
    runners, count = [], itertools.count()

    def run(body: str, x: int = 0, progress=lambda *a: None, imports="pass"):
        methods = {"run(self, progress)": body, "imports(self)": imports}
        text = "".join(f"\n    def {name}:\n{textwrap.indent(code, ' ' * 8)}\n" for name, code in methods.items())
        name = f"probe_{next(count)}"
        (site / f"{name}.py").write_text(HEAD + text)
        importlib.invalidate_caches()
        probe = importlib.import_module(name).Probe(x, out=tmp_path / "out")
        if not runners:
            runners.append(process.StageRunner())
        return runners[-1].run(probe, tmp_path / "probe.log", progress)

    run.site, run.runners = site, runners
    yield run
    for name in [name for name in sys.modules if name.startswith("probe_")]:
        sys.modules.pop(name)


@pytest.fixture
def heavy(stage, tmp_path):
    """A module `heavy` with `more` in it; returns the processes that have imported it."""

    def write(more: str = ""):
        note = f"import os\nopen({str(tmp_path / 'imported')!r}, 'a').write(f'{{os.getpid()}}\\n')\n"
        (stage.site / "heavy.py").write_text(note + more)
        return lambda: [int(line) for line in (tmp_path / "imported").read_text().split()]

    return write


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


def test_kill_becomes_one_sentence(stage):
    with pytest.raises(SvdqError, match="killed \\(signal 9, often lack of memory\\)"):
        stage("import os\nos.kill(os.getpid(), 9)")


def test_imports_are_shared_by_stages_and_nothing_else_is(stage, heavy):
    imported = heavy("print('noise')\ntouched = 0\n")
    body = "import heavy, os\nheavy.touched += 1\nprint(os.getpid())\nreturn Twice(heavy.touched)"
    pids = []
    for _ in range(3):
        assert stage(body, imports="import heavy").value.twice == 1
        *noise, pid = (stage.site.parent / "probe.log").read_text().split()
        pids.append(int(pid))
        assert noise == (["noise"] if len(pids) == 1 else [])
    assert len(set(pids)) == 3 and imported() == list(stage.runners[0].fork_servers)
    assert not {*pids} & {*imported()}


def test_stage_has_a_new_process_where_an_import_started_a_thread(stage, heavy):
    imported = heavy("import threading\nthreading.Thread(target=threading.Event().wait, daemon=True).start()\n")
    for _ in range(2):
        assert stage("import heavy\nreturn Twice(7)", imports="import heavy").value.twice == 7
    assert len(set(imported())) == 3  # the first is the fork server


def test_stages_may_end_at_once(monkeypatch):
    """The end of a second one is told while that of the first is: by the handler of its signal, inside the other's."""
    children = [subprocess.Popen([sys.executable, "-c", f"raise SystemExit({code})"]) for code in (3, 4)]
    pipes = [os.pipe() for _ in children]
    for child in children:
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
    answers = {child.pid: answer for child, (_, answer) in zip(children, pipes, strict=True)}
    write = os.write

    def interrupted(file, text):
        monkeypatch.undo()
        written = write(file, text)
        fork_server._tell_ended(answers)
        return written

    monkeypatch.setattr(os, "write", interrupted)
    fork_server._tell_ended(answers)
    assert not answers
    for code, (told, _) in zip((3, 4), pipes, strict=True):
        with open(told, "rb") as lines:
            assert lines.read() == b"%d\n" % code
    for child in children:
        child.wait()


def test_import_that_fails_is_the_stages_own_failure(stage, heavy):
    heavy("raise ImportError('no such driver')")
    with pytest.raises(process.StageCrashError, match="ImportError: no such driver"):
        stage("import heavy", imports="import heavy")
    assert stage("return Twice(1)").value.twice == 1


def test_import_that_aborts_is_one_sentence_and_other_stages_run(stage, heavy):
    heavy("os.abort()")
    with pytest.raises(SvdqError, match="stage 'probe': ended by signal 6"):
        stage("import heavy", imports="import heavy")
    assert stage("return Twice(1)").value.twice == 1


def test_nothing_runs_when_the_runner_has_stopped_or_is_gone(stage, tmp_path):
    running = tmp_path / "running"

    def stop():
        while not running.exists():
            time.sleep(0.01)
        stage.runners[0].stop()

    stopper = threading.Thread(target=stop)
    stopper.start()
    body = f"import time\nopen({str(running)!r}, 'w').close()\ntime.sleep(600)"
    for _ in range(2):
        with pytest.raises(SvdqError, match="killed"):
            stage(body)
    stopper.join()
    (server,) = stage.runners[0].fork_servers
    assert psutil.pid_exists(server)
    stage.runners.clear()
    gc.collect()
    assert not psutil.pid_exists(server)


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
