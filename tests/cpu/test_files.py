"""Artifacts are written whole or not at all."""

import errno
import hashlib
import subprocess
import sys

import pytest

from svdq_trt.base import files
from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.files import atomic_write, read_json_object


def test_atomic_write_publishes_only_at_the_end(tmp_path):
    target = tmp_path / "sub" / "a.bin"
    with atomic_write(target) as tmp:
        assert tmp.parent == target.parent
        tmp.write_bytes(b"new")
        assert not target.exists()
    assert target.read_bytes() == b"new"
    assert [p.name for p in target.parent.iterdir()] == ["a.bin"]


def test_atomic_write_keeps_the_old_file_when_the_body_fails(tmp_path):
    target = tmp_path / "a.bin"
    target.write_bytes(b"old")
    with pytest.raises(ZeroDivisionError), atomic_write(target) as tmp:
        tmp.write_bytes(b"half")
        raise ZeroDivisionError
    assert target.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.bin"]


@pytest.mark.parametrize(
    "code,text",
    [(errno.ENOSPC, "disk full"), (errno.EACCES, "not writable"), (errno.EIO, "cannot be written")],
)
def test_atomic_write_tells_os_errors_as_artifact_errors(tmp_path, code, text):
    with pytest.raises(ArtifactError, match=text), atomic_write(tmp_path / "a.bin"):
        raise OSError(code, "simulated")
    assert not list(tmp_path.iterdir())


def test_atomic_write_into_a_file_as_folder_is_an_artifact_error(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(ArtifactError, match=r"a\.bin"), atomic_write(tmp_path / "file" / "a.bin"):
        pass


@pytest.mark.parametrize("size", [0, 1, 4095, 4096, 4097, 8192, 10000])
def test_digests_of_a_file_are_those_of_its_bytes(size, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "CHUNK", 4096)
    content = (bytes(range(251)) * 40)[:size]
    path = tmp_path / "a.bin"
    path.write_bytes(content)
    chunks = tuple(hashlib.sha256(content[at : at + 4096]).hexdigest() for at in range(0, size, 4096))
    assert files.sha256(path) == hashlib.sha256(content).hexdigest() and files.sha256_of_chunks(path) == chunks
    written = files.Digests()
    for at in range(0, size, 5000):
        written.update(content[at : at + 5000])
    assert written.whole == files.sha256(path) and written.chunks == (chunks if size > 4096 else ())


def test_what_has_no_digest_is_an_artifact_error(tmp_path):
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(ArtifactError, match="cannot be read"):
            files.sha256(path)
        with pytest.raises(ArtifactError, match="cannot be read"):
            files.sha256_of_chunks(path)


def test_save_tensors_reports_the_systems_error_and_leaves_nothing(tmp_path):
    """A real one: the child may write 4 KiB to a file."""
    code = (
        "import resource, signal, sys, torch; from svdq_trt.base.errors import ArtifactError;"
        "from svdq_trt.artifact.tensor_file import save_tensors\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN); resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))\n"
        "try: save_tensors(sys.argv[1], {'a': torch.zeros(1 << 16)}, {})\n"
        "except ArtifactError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path / "a")], capture_output=True, text=True)
    assert "cannot be written (" in done.stdout and "File too large" in done.stdout, done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


def test_atomic_write_has_ordinary_permissions(tmp_path):
    plain = tmp_path / "plain"
    plain.write_text("x")
    with atomic_write(tmp_path / "a.bin") as tmp:
        tmp.write_text("x")
    assert (tmp_path / "a.bin").stat().st_mode == plain.stat().st_mode


@pytest.mark.parametrize(
    "content,text",
    [
        (b"{", "not valid JSON"),
        (b"[1]", "a JSON list"),
        (b"\xff\xfe", "not valid JSON"),
        (b"[" * 200_000, "not valid JSON"),
    ],
)
def test_read_json_object_tells_malformed_files(tmp_path, content, text):
    path = tmp_path / "x.json"
    path.write_bytes(content)
    with pytest.raises(ArtifactError, match=text):
        read_json_object(path, "an index")


def test_read_json_object_tells_a_missing_file(tmp_path):
    with pytest.raises(ArtifactError, match="cannot be read"):
        read_json_object(tmp_path / "none.json", "an index")
