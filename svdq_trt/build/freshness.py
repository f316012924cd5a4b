"""Reuse of finished stages: a stage's key is a hash of all it depends on; its record lies beside its files.

``<folder>/.<stage>.json`` holds {key, files: {name: [bytes, mtime_ns]}, result}. A stage is fresh when its key is the
same and its files are as they were left.
"""

from __future__ import annotations

import hashlib
import json
from functools import cache
from pathlib import Path
from typing import Any

from svdq_trt.base.files import atomic_write

_PACKAGE = Path(__file__).resolve().parent.parent


def stage_key(stage: str, sources: tuple[str, ...], params: dict[str, Any]) -> str:
    """Hash of the stage's parameters (which name its inputs' keys) and of the code that runs it."""
    text = json.dumps({"stage": stage, "code": code_digest(sources), "params": params}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


@cache
def code_digest(sources: tuple[str, ...]) -> str:
    """Hash of our own source files; `sources` are module paths as ``svdq_trt/quantize``, ``svdq_export``."""
    digest = hashlib.sha256()
    for source in sources:
        root = _source_root(source)
        files = sorted(root.rglob("*.py")) if root.is_dir() else [root.with_suffix(".py")]
        for file in files:
            digest.update(file.name.encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()


def _source_root(source: str) -> Path:
    if source == "svdq_export":
        import importlib.util

        spec = importlib.util.find_spec("svdq_export")
        assert spec is not None and spec.origin is not None
        return Path(spec.origin).parent
    return _PACKAGE.parent / source


def record_path(folder: Path, stage: str) -> Path:
    """Where a stage's record lies: a file per stage, as stages run side by side."""
    return folder / f".{stage}.json"


def lookup(folder: Path, stage: str, key: str) -> dict[str, Any] | None:
    """The stage's recorded result if it is fresh, else None."""
    try:
        record = json.loads(record_path(folder, stage).read_text())
    except (OSError, ValueError):
        return None  # absent or damaged: the stage runs again
    if not isinstance(record, dict) or record.get("key") != key:
        return None
    files, result = record.get("files"), record.get("result")
    if not isinstance(files, dict) or any(_fingerprint(folder / name) != mark for name, mark in files.items()):
        return None
    return result if isinstance(result, dict) else None


def store(folder: Path, stage: str, key: str, files: list[str], result: dict[str, Any]) -> None:
    """Record a finished stage whose outputs are `files` in `folder`."""
    marks = {name: _fingerprint(folder / name) for name in files}
    with atomic_write(record_path(folder, stage)) as tmp:
        tmp.write_text(json.dumps({"key": key, "files": marks, "result": result}, indent=1))


def _fingerprint(path: Path) -> list[int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return [stat.st_size, stat.st_mtime_ns]
