"""Records of finished steps: a step is fresh when its key is the same and its files hold what it wrote.

``<folder>/.<step>.json`` holds {key, files: {name: SHA-256}, result}. A file counts by its content: its time says
neither that it is the step's (a copy can keep it) nor that it is not (a copy can lose it). 1.8 GB are hashed a second.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svdq_trt.base.files import atomic_write, parse_json, sha256


def record_path(folder: Path, step: str) -> Path:
    """Path of a step's record: a file per step, as stages run concurrently."""
    return folder / f".{step}.json"


@dataclass(frozen=True)
class Record:
    """A finished step: its result, and the SHA-256 of each of its files by name."""

    result: dict[str, Any]
    digests: dict[str, str]


def lookup(folder: Path, step: str, key: str) -> Record | None:
    """The step's record if it is fresh, else None."""
    try:
        record = parse_json(record_path(folder, step).read_bytes())
    except (OSError, ValueError):
        return None  # absent or damaged: the step runs again
    if not isinstance(record, dict) or record.get("key") != key:
        return None
    files, result = record.get("files"), record.get("result")
    if not isinstance(files, dict) or not isinstance(result, dict):
        return None
    if any(mark is None or digest_of(folder / name) != mark for name, mark in files.items()):
        return None
    return Record(result, files)


def store(folder: Path, step: str, key: str, files: Iterable[str], result: dict[str, Any]) -> Record:
    """Record a finished step whose outputs are `files` in `folder`."""
    marks = {name: digest_of(folder / name) for name in files}
    with atomic_write(record_path(folder, step)) as tmp:
        tmp.write_text(json.dumps({"key": key, "files": marks, "result": result}, indent=1))
    return Record(result, {name: mark for name, mark in marks.items() if mark is not None})


def digest_of(path: Path) -> str | None:
    """SHA-256 of a regular file; None for anything else, as no stage writes a link."""
    return sha256(path) if path.is_file() and not path.is_symlink() else None
