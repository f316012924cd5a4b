"""Records of finished steps: a step is fresh when its key is the same and its files have not been changed since.

``<folder>/.<step>.json`` holds {key, files: {name: [bytes, mtime_ns]}, result}.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from stat import S_ISREG
from typing import Any

from svdq_trt.base.files import atomic_write


def record_path(folder: Path, step: str) -> Path:
    """Path of a step's record: a file per step, as stages run concurrently."""
    return folder / f".{step}.json"


def lookup(folder: Path, step: str, key: str) -> dict[str, Any] | None:
    """The step's recorded result if it is fresh, else None."""
    try:
        record = json.loads(record_path(folder, step).read_text())
    except (OSError, ValueError, RecursionError):
        return None  # absent or damaged: the step runs again
    if not isinstance(record, dict) or record.get("key") != key:
        return None
    files, result = record.get("files"), record.get("result")
    if not isinstance(files, dict) or any(
        mark is None or _fingerprint(folder / name) != mark for name, mark in files.items()
    ):
        return None
    return result if isinstance(result, dict) else None


def store(folder: Path, step: str, key: str, files: Iterable[str], result: dict[str, Any]) -> None:
    """Record a finished step whose outputs are `files` in `folder`."""
    marks = {name: _fingerprint(folder / name) for name in files}
    with atomic_write(record_path(folder, step)) as tmp:
        tmp.write_text(json.dumps({"key": key, "files": marks, "result": result}, indent=1))


def _fingerprint(path: Path) -> list[int] | None:
    try:
        stat = path.lstat()  # no stage writes a link
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns] if S_ISREG(stat.st_mode) else None
