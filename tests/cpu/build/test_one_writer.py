"""One process writes an engine folder at a time: finish, another finish, a build."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from svdq_trt import cli
from svdq_trt.artifact import manifest
from svdq_trt.artifact.graph_entries import BackendEntry, PlanEntry
from svdq_trt.base.files import sha256
from svdq_trt.build import finish
from svdq_trt.build.folder import only_writer
from svdq_trt.build.process import Done
from svdq_trt.build.stages.plan import Planned
from svdq_trt.engine.plugin_lib import PluginLibrary
from tests.harness.serve_toy import write_toy

BUSY = "another svdq-trt is writing there, want one at a time. Wait for it"


@pytest.fixture
def folder(tmp_path):
    """An engine folder with the partial plan of a killed finish."""
    toy = write_toy(tmp_path / "toy-sm_89")
    (toy / ".model.plan.killed.tmp").write_bytes(b"half")
    return toy


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != ".lock"}


def test_finish_waits_for_no_one_and_touches_nothing(folder, capsys):
    before = contents(folder)
    with only_writer(folder):
        assert cli.main(["finish", str(folder)]) == 1
    assert f"svdq-trt: {folder}: {BUSY}" in capsys.readouterr().err
    assert contents(folder) == before


def test_second_finish_is_refused_while_the_first_one_builds(folder, tmp_path, monkeypatch, capsys):
    installed = tmp_path / "libsvdq_trt_plugin.so"
    installed.write_bytes(b"newer plugin")
    codes = []

    def build(self, stage, log, progress):
        codes.append(cli.main(["finish", str(folder)]))
        stage.out.write_bytes(b"new plan")
        plan, backend = PlanEntry(stage.out.name, 8, sha256(stage.out)), BackendEntry(stage.backend, stage.version)
        return Done(Planned(plan, backend, (), {}), 1.0, 1)

    monkeypatch.setattr(finish, "select", lambda choice, arch: SimpleNamespace(name="fake", version="1"))
    library = PluginLibrary(installed, sha256(installed), "2.0.0", "linux-riscv64", (89, 90))
    monkeypatch.setattr(finish.plugin_lib, "find", lambda: library)
    monkeypatch.setattr(finish.StageRunner, "run", build)
    assert cli.main(["finish", str(folder)]) == 0
    assert codes == [1] and BUSY in capsys.readouterr().err
    assert manifest.verify(folder).plugin.version == "2.0.0"
    assert not list(folder.glob(".*.tmp"))


def test_folder_that_is_none_is_not_made(tmp_path, capsys):
    assert cli.main(["finish", str(tmp_path / "typo")]) == 1
    assert "typo: no such folder, want an engine folder" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_build_does_not_begin_where_a_finish_is_at_work(tmp_path, capsys):
    words = ["--model", "pixart-tiny", "--arch", "sm_89", "--random-weights", "0", "--out", str(tmp_path)]
    with only_writer(tmp_path / "pixart-tiny-sm_89"):
        assert cli.main(["build", *words]) == 1
    assert f"pixart-tiny-sm_89: {BUSY}" in capsys.readouterr().err
    assert contents(tmp_path / "pixart-tiny-shared") == contents(tmp_path / "pixart-tiny-sm_89") == {}
