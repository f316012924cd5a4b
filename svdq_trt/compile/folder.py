"""Files put into an engine's folder."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from svdq_trt.files import atomic_write


def copy_plugin(library: Path, folder: Path) -> Path:
    """Put the plugin library beside a plan, for runtimes that load it themselves."""
    with atomic_write(folder / library.name) as tmp:
        shutil.copyfile(library, tmp)
    return folder / library.name


def place(source: Path, target: Path, link: bool) -> None:
    """Put a shared artifact into an engine's folder, by hard link or as a copy with the same time stamp."""
    before, stat = (target.stat() if target.exists() else None), source.stat()
    if before and (before.st_size, before.st_mtime_ns) == (stat.st_size, stat.st_mtime_ns):
        return
    with atomic_write(target) as tmp:
        tmp.unlink()
        if link:
            with suppress(OSError):  # another file system, or one without links
                os.link(source, tmp)
        if not tmp.exists():
            shutil.copy2(source, tmp)
