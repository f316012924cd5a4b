"""Stages in processes: results, errors, crashes and what a person reads about them."""

from __future__ import annotations

import pytest

from svdq_trt.base.errors import ArtifactError, SvdqError
from svdq_trt.base.memory import out_of_memory
from svdq_trt.build import events, process, worker


@pytest.fixture
def stage(tmp_path, monkeypatch):
    """Run a one-off stage module from source text."""

    def run(source: str, args=None, progress=lambda *a: None):
        package = tmp_path / "site" / "svdq_probe"
        package.mkdir(parents=True, exist_ok=True)
        (package / "__init__.py").write_text("")
        (tmp_path / "site" / "sitecustomize.py").write_text(
            "import svdq_trt.build.stages as s, pathlib\ns.__path__.append(str(pathlib.Path(__file__).parent))\n"
        )
        (tmp_path / "site" / "probe.py").write_text(source)
        import os

        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")]))
        return process.StageRunner().run("probe", args or {}, tmp_path / "probe.log", progress)

    return run


def test_result_progress_time_and_memory_come_back(stage):
    seen = []
    done = stage(
        "def run(args, progress):\n    progress(1, 2, 'half')\n    print('noise')\n    return {'twice': 2 * args['x']}",
        {"x": 4},
        lambda *a: seen.append(a),
    )
    assert done.value == {"twice": 8} and seen == [(1, 2, "half")]
    assert done.seconds > 0 and done.peak_rss_bytes > 10e6


def test_user_error_keeps_type_and_text(stage):
    with pytest.raises(ArtifactError, match=r"f: got, want a b. Fix it\."):
        stage("from svdq_trt.base.errors import ArtifactError as E\ndef run(a, p): raise E('f','got','a b','Fix it.')")


def test_abort_becomes_one_sentence(stage):
    with pytest.raises(SvdqError, match="ended by signal 6"):
        stage("import os\ndef run(a, p): os.abort()")


def test_bug_names_the_log(stage, tmp_path):
    with pytest.raises(process.StageCrashError, match=r"ZeroDivisionError.*probe\.log"):
        stage("def run(a, p): return 1 / 0")


def test_full_disk_is_a_user_error(stage):
    with pytest.raises(SvdqError, match="No space left"):
        stage("import errno\ndef run(a, p): raise OSError(errno.ENOSPC, 'No space left on device', '/x/y')")


def test_lack_of_memory_is_a_user_error(stage):
    with pytest.raises(SvdqError, match=r"stage 'probe': out of memory, want more RAM\. Close other programs\.$"):
        stage("def run(a, p): raise MemoryError")


def test_lack_of_memory_is_told_in_every_librarys_words():
    for words in (
        "[ONNXRuntimeError] : 1 : FAIL : Failed to allocate memory for requested buffer of size 9",
        "[ONNXRuntimeError] : 6 : RUNTIME_EXCEPTION : std::bad_alloc",
        "unable to mmap 9 bytes: Cannot allocate memory (12)",
    ):
        assert "out of memory" in str(out_of_memory("x", RuntimeError(words)))
    assert "out of GPU memory" in str(out_of_memory("x", RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling")))
    assert out_of_memory("x", RuntimeError("Storage size calculation overflowed")) is None


def test_way_out_of_lack_of_memory_is_one_that_the_stage_has():
    told = {stage: str(worker._told(stage, MemoryError())) for stage in ("reference_export", "run_onnx", "quantize")}
    assert [name for name, text in told.items() if "or use --no-check" in text] == ["reference_export", "run_onnx"]


def test_unknown_error_type_from_a_child_is_still_a_user_error():
    error = events.rebuild_error({"type": "os", "where": "w", "got": "g", "want": "x", "fix": ""})
    assert type(error) is SvdqError
