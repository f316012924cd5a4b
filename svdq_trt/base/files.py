"""Writing an artifact whole or not at all, and reading JSON from an untrusted file."""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import json
import math
import mmap
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

from svdq_trt.base.errors import ArtifactError

CHUNK = 256 << 20  # bytes of a file that are hashed at a time; manifests hold digests of as many
_JSON_MAX_BYTES = 64 << 20  # an index of 100,000 tensors is 10 MB; anything larger is not an index


@contextlib.contextmanager
def atomic_write(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success it is synced and renamed over `path`.

    On any exception the temporary file is removed and `path` keeps its old content. A reader therefore never
    sees half a file, not even after a power cut. A link at `path` is replaced, not followed.

    Raises:
        ArtifactError: the folder is missing or not writable, or the disk is full.
    """
    path = Path(path)
    tmp: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        fd, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".tmp", dir=path.parent)
        os.close(fd)
        tmp = Path(name)
        yield tmp
        _publish(tmp, path)
        tmp = None
    except OSError as error:
        raise _write_error(path, error) from error
    finally:
        if tmp is not None:
            with contextlib.suppress(OSError):
                tmp.unlink()


def refuse_link(path: Path) -> None:
    """Check that `path`, which lies in a folder that svdq-trt writes, is no symbolic link.

    A folder may come from somebody else; writing or removing through a link in it would hit the user's own files.
    The folder that the user names may itself be a link: it is not checked.

    Raises:
        ArtifactError: it is one.
    """
    if path.is_symlink():
        raise ArtifactError(
            str(path),
            f"a link to {path.readlink()}",
            "a file or folder that lies here",
            "Remove the link, or choose another folder.",
        )


def own_folder(base: Path, *names: str) -> Path:
    """Make `base` and the nested folders `names` in it; returns the innermost.

    Raises:
        ArtifactError: one of `names` is a link.
    """
    base.mkdir(parents=True, exist_ok=True)
    for name in names:
        base = base / name
        refuse_link(base)
        base.mkdir(exist_ok=True)
    return base


def open_own(path: Path, mode: str) -> IO[Any]:
    """Open a file that is written in place (a lock, a log, a journal) as `open` does, but never through a link.

    Raises:
        ArtifactError: it is a link.
    """
    try:
        return open(path, mode, opener=lambda name, flags: os.open(name, flags | os.O_NOFOLLOW, 0o666))
    except OSError:
        refuse_link(path)
        raise


def sha256(path: Path) -> str:
    """Hex digest of a file.

    The GIL is released for CHUNK bytes at a time: after each small read it would take milliseconds to have it again,
    beside a thread that imports or computes.

    Raises:
        ArtifactError: missing or not readable.
    """
    digest = hashlib.sha256()
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size
        for start in range(0, size, CHUNK):
            with _mapped(file, start, size) as data:
                digest.update(data)
        digest.update(b"" if size else file.read())  # of a pipe
    return digest.hexdigest()


def sha256_of_chunks(path: Path) -> tuple[str, ...]:
    """Hex digests of each CHUNK bytes of a file, the last ones fewer, made by a thread per core, at most 16.

    Raises:
        ArtifactError: missing or not readable.
    """
    with _open(path) as file:
        size = os.fstat(file.fileno()).st_size

        def digest(start: int) -> str:
            with _mapped(file, start, size) as data:
                return hashlib.sha256(data).hexdigest()

        with ThreadPoolExecutor(min(16, os.cpu_count() or 1)) as pool:
            return tuple(pool.map(digest, range(0, size, CHUNK)))


class Digests:
    """SHA-256 of a file that is being written: of the whole as `sha256`, and of its chunks as `sha256_of_chunks`."""

    def __init__(self) -> None:
        self._whole, self._chunks, self._room = hashlib.sha256(), [hashlib.sha256()], CHUNK

    def update(self, data: bytes) -> None:
        """Take the next bytes."""
        self._whole.update(data)
        rest = memoryview(data)
        while rest:
            if not self._room:
                self._chunks.append(hashlib.sha256())
                self._room = CHUNK
            part, rest = rest[: self._room], rest[self._room :]
            self._chunks[-1].update(part)
            self._room -= len(part)

    @property
    def whole(self) -> str:
        """Hex digest of everything."""
        return self._whole.hexdigest()

    @property
    def chunks(self) -> tuple[str, ...]:
        """Hex digests of the chunks; none where one is everything."""
        return tuple(chunk.hexdigest() for chunk in self._chunks) if len(self._chunks) > 1 else ()


@contextlib.contextmanager
def _open(path: Path) -> Iterator[IO[bytes]]:
    """Open a file for reading. Raises ArtifactError: missing or not readable."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise ArtifactError(str(path), f"cannot be read ({error.strerror})", "a readable file") from error


def _mapped(file: IO[bytes], start: int, size: int) -> mmap.mmap:
    """The chunk of a file of `size` bytes that begins at `start`."""
    return mmap.mmap(file.fileno(), min(CHUNK, size - start), access=mmap.ACCESS_READ, offset=start)


def can_link(source: Path) -> bool:
    """Whether a file may have hard links: onnx opens no external data with several, at neither of its places."""
    return not source.name.endswith((".onnx", ".onnx.data"))


def link_or_copy(source: Path, target: Path) -> None:
    """Put a file at `target`, where none is: a hard link if possible, else a copy with the same time stamp."""
    if can_link(source):
        with contextlib.suppress(OSError):  # another file system, or one without links
            os.link(source.resolve(), target)
            return
    shutil.copy2(source, target)


def remove_leftovers(folder: Path, names: Iterable[str]) -> None:
    """Delete temporary files that a killed process left beside the files it was writing."""
    for name in names:
        for path in folder.glob(f".{glob.escape(name)}.*.tmp"):
            with contextlib.suppress(OSError):
                path.unlink()
        for path in folder.glob(f".{glob.escape(Path(name).stem)}-*"):  # a staging folder of the exporter
            shutil.rmtree(path, ignore_errors=True)


def _publish(tmp: Path, path: Path) -> None:
    umask = os.umask(0)
    os.umask(umask)
    os.chmod(tmp, 0o666 & ~umask)  # mkstemp makes 0600; an artifact is as readable as any other file
    fd = os.open(tmp, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
    os.replace(tmp, path)
    with contextlib.suppress(OSError):  # not every file system lets a folder be synced
        fd = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def _write_error(path: Path, error: OSError) -> ArtifactError:
    where = str(path)
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return ArtifactError(where, "disk full while writing", "more space", "Free some or choose another folder.")
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return ArtifactError(where, "not writable", "a writable folder", "Choose another folder.")
    reason = error.strerror or str(error) or type(error).__name__
    return ArtifactError(where, f"cannot be written ({reason})", "a writable file path")


def read_json_object(path: str | os.PathLike[str], what: str, *, infinite: bool = False) -> dict[str, Any]:
    """Read a JSON file that must hold an object; `what` names its role in the error. For `infinite` see `parse_json`.

    Raises:
        ArtifactError: missing, unreadable, larger than 64 MiB, not JSON, or not an object.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size > _JSON_MAX_BYTES:
            raise ArtifactError(str(path), f"{size} bytes", f"{what} of at most {_JSON_MAX_BYTES} bytes")
        value = parse_json(path.read_bytes(), infinite=infinite)
    except OSError as error:
        raise ArtifactError(str(path), f"cannot be read ({error.strerror})", what) from error
    except ValueError as error:
        raise ArtifactError(str(path), "not valid JSON", what) from error
    if not isinstance(value, dict):
        raise ArtifactError(str(path), f"a JSON {type(value).__name__}", f"{what} (a JSON object)")
    return value


def parse_json(text: str | bytes, *, infinite: bool = False) -> Any:
    """Parse JSON from outside: strictly, so that no later step stumbles over what it holds.

    Args:
        infinite: let NaN and Infinity pass, as diffusers writes them.

    Raises:
        ValueError: not UTF-8 or not JSON, nested too deeply, a number that is NaN, infinite or of more than 64 bits, or
            text that is no Unicode (half of a surrogate pair), which no file or terminal takes.
    """
    try:
        text = text.decode("utf-8") if isinstance(text, bytes) else text
        value = json.loads(text, parse_constant=float if infinite else _refuse, parse_float=_finite, parse_int=_int64)
        if "\\ud" in text.lower():  # an escaped surrogate; JSON needs two of them for one character
            json.dumps(value, ensure_ascii=False).encode("utf-8")
        else:
            text.encode("utf-8")
    except RecursionError:
        raise ValueError("nested too deeply") from None
    return value


def _refuse(name: str) -> Any:
    raise ValueError(f"{name} is no JSON")


def _finite(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _refuse(text)


def _int64(text: str) -> int:
    value = int(text) if len(text) <= 20 else 1 << 64
    return value if -(1 << 63) <= value < 1 << 63 else _refuse(text[:20])
