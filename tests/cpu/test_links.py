"""Links in a folder that svdq-trt writes: nothing is written or removed through them."""

from __future__ import annotations

import os
from types import SimpleNamespace

import pytest

from svdq_trt import cli
from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.files import atomic_write, open_own, own_folder, remove_leftovers
from svdq_trt.base.journal import Journal
from svdq_trt.build import folder as folders
from svdq_trt.build import freshness
from svdq_trt.build.folder import only_writer, place
from svdq_trt.build.process import StageRunner
from svdq_trt.build.run import Build
from svdq_trt.build.stage import File
from svdq_trt.build.stages.take_quantized import TakeQuantized
from tests.harness.serve_toy import write_toy

LINK = r"a link to .*, want a file or folder that lies here\. Remove the link, or choose another folder\.$"


@pytest.fixture
def precious(tmp_path):
    """Someone's folder; its files must stay as they are."""
    folder = tmp_path / "precious"
    folder.mkdir()
    for name in ("letter.txt", "photo.png", "svdq.safetensors"):
        (folder / name).write_text(f"the only {name}")
    before = {p.name: p.read_text() for p in folder.iterdir()}
    yield folder
    assert {p.name: p.read_text() for p in folder.iterdir()} == before


@pytest.fixture
def engine(tmp_path):
    return write_toy(tmp_path / "toy-sm_89")


def test_report_neither_removes_nor_writes_pictures_through_a_link(engine, precious, capsys):
    (engine / "report").symlink_to(precious)
    assert cli.main(["report", str(engine), "--layers", "0"]) == 1
    printed = capsys.readouterr().err
    assert printed == (
        f"svdq-trt: {engine / 'report'}: a link to {precious}, want a file or folder that lies here. "
        "Remove the link, or choose another folder.\n"
    )


def test_lock_is_no_link(engine, precious, capsys):
    (engine / ".lock").symlink_to(precious / "letter.txt")
    assert cli.main(["finish", str(engine)]) == 1
    assert f"{engine / '.lock'}: a link to " in capsys.readouterr().err


def test_lock_to_nowhere_makes_no_file(engine, tmp_path):
    (engine / ".lock").symlink_to(tmp_path / "new")
    with pytest.raises(ArtifactError, match=LINK), only_writer(engine):
        pass
    assert not (tmp_path / "new").exists()


def test_lock_that_is_another_name_of_a_file_empties_nothing(engine, precious):
    os.link(precious / "letter.txt", engine / ".lock")
    with only_writer(engine):
        pass


def test_logs_are_no_links(engine, precious):
    (engine / "finish.log").symlink_to(precious / "letter.txt")
    with pytest.raises(ArtifactError, match=LINK):
        StageRunner().run(
            TakeQuantized("x", File("", path=engine), out=engine / "x"), engine / "finish.log", lambda *_: None
        )


@pytest.mark.parametrize("name", ["toy-shared", "toy-shared/logs", "toy-sm_89", "toy-shared/.lock"])
def test_build_writes_through_no_link(tmp_path, precious, name):
    out = tmp_path / "out"
    (out / name).parent.mkdir(parents=True)
    (out / name).symlink_to(precious / "letter.txt" if name.endswith("lock") else precious)
    build = object.__new__(Build)
    build.work = SimpleNamespace(shared=out / "toy-shared", logs=out / "toy-shared" / "logs")
    with pytest.raises(ArtifactError, match=LINK), build._only_writer(out / "toy-sm_89"):
        pass


def test_folder_that_the_user_names_may_be_a_link(tmp_path, engine):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    assert own_folder(tmp_path / "out", "toy-shared", "logs").is_dir()
    assert (tmp_path / "disk" / "toy-shared" / "logs").is_dir()
    (tmp_path / "named").symlink_to(engine)
    with only_writer(tmp_path / "named"):
        assert (engine / ".lock").exists()


def test_partial_folder_and_journal_are_no_links(tmp_path, precious):
    (tmp_path / "svdq.safetensors.partial").symlink_to(precious)
    with pytest.raises(ArtifactError, match=LINK):
        own_folder(tmp_path, "svdq.safetensors.partial", "key")
    for target in ("letter.txt", "nothing yet"):
        (tmp_path / "effects.jsonl").symlink_to(precious / target)
        with pytest.raises(ArtifactError, match=LINK):
            Journal(tmp_path / "effects.jsonl", "key")
        (tmp_path / "effects.jsonl").unlink()


def test_a_finished_file_replaces_a_link(tmp_path, precious):
    link = tmp_path / "model.plan"
    link.symlink_to(precious / "letter.txt")
    with atomic_write(link) as tmp:
        tmp.write_text("plan")
    assert link.read_text() == "plan" and not link.is_symlink()


def test_a_link_is_no_finished_file(tmp_path, precious):
    source, target = precious / "svdq.safetensors", tmp_path / "svdq.safetensors"
    target.symlink_to(source)
    place(source, target, freshness.digest_of(source))
    assert not target.is_symlink() and target.read_text() == source.read_text()
    (tmp_path / "calib.safetensors").symlink_to(source)
    freshness.store(tmp_path, "calibrate", "key", ["calib.safetensors"], {})
    (tmp_path / "calib.safetensors").unlink()
    (tmp_path / "calib.safetensors").write_text(source.read_text())
    assert freshness.lookup(tmp_path, "calibrate", "key") is None


def test_leftovers_are_removed_and_not_what_they_link_to(tmp_path, precious):
    (tmp_path / ".model.plan.x.tmp").symlink_to(precious / "letter.txt")
    (tmp_path / ".model-x").symlink_to(precious)
    remove_leftovers(tmp_path, ["model.plan"])
    assert not (tmp_path / ".model.plan.x.tmp").is_symlink()


def test_float32_twin_is_not_staged_through_a_link(tmp_path, precious):
    from svdq_export import write_float32_twin

    engine = write_toy(tmp_path / "toy", "bfloat16")
    (engine / ".model.f32.onnx").symlink_to(precious / "letter.txt")
    assert write_float32_twin(engine / "model.onnx").is_file()


def test_triton_model_is_no_link(tmp_path, engine, precious):
    from svdq_trt.serve.config import Serving
    from svdq_trt.serve.repository import write_model

    pytest.importorskip("tritonclient")
    repository = tmp_path / "models"
    repository.mkdir()
    (repository / "toy").symlink_to(precious)
    with pytest.raises(ArtifactError, match=LINK):
        write_model(engine, repository, Serving("toy", "onnxruntime", "cpu", 1, None))
    assert [p.name for p in repository.iterdir()] == ["toy"]


def test_other_errors_of_opening_stay_what_they_are(tmp_path):
    with pytest.raises(FileNotFoundError):
        open_own(tmp_path / "none" / "log", "w")
    assert folders.open_own is open_own
