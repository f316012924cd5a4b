"""Output folders: one process at a time writes to them, and shared files are put into them."""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.files import atomic_write, can_link, link_or_copy, open_own
from svdq_trt.build.freshness import digest_of


@contextmanager
def only_writer(*folders: Path) -> Iterator[None]:
    """Make `folders` and lock them against other processes, which would overwrite this one's files.

    Raises:
        ArtifactError: another one holds one of them, or the lock is a link.
    """
    with ExitStack() as held:
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
            lock = held.enter_context(open_own(folder / ".lock", "a"))
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise ArtifactError(
                    str(folder),
                    "another svdq-trt is writing there",
                    "one at a time",
                    "Wait for it, or choose another folder.",
                ) from None
        yield


def copy_plugin(library: Path, folder: Path) -> Path:
    """Put the plugin library beside a plan, for runtimes that load it themselves."""
    with atomic_write(folder / library.name) as tmp:
        shutil.copyfile(library, tmp)
    return folder / library.name


def place(source: Path, target: Path, digest: str) -> None:
    """Put a shared artifact, whose SHA-256 is `digest`, into an engine's folder; what holds the same already stays.

    A symbolic link is replaced, and so is a hard link where none may be.
    """
    link = can_link(source)
    if link and target.is_file() and not target.is_symlink() and target.samefile(source):
        return
    if digest_of(target) == digest and (link or target.stat().st_nlink == 1):
        return
    with atomic_write(target) as tmp:
        tmp.unlink()
        link_or_copy(source, tmp)
