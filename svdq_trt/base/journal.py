"""Finished pieces of a long job, one line each, so that a killed run resumes where it stopped.

    {"key": "5e88..."}
    {"name": "down_blocks.1.attn1.to_qkv", "value": ...}

A line is written and flushed as its piece is done; a torn last line counts as not done. Standard library only.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from svdq_trt.base.files import open_own, parse_json


class Journal:
    """A file of named JSON values under one key.

    Attributes:
        values: name -> value of each finished piece, in the order in which they finished.
    """

    def __init__(self, path: Path, key: str) -> None:
        """Reuse what `path` holds under `key`; a file with anything else is started over."""
        self.path, self.key = path, key
        self.values: dict[str, Any] = {}
        self._good = 0  # bytes that were read and understood
        path.parent.mkdir(parents=True, exist_ok=True)
        self._read()
        with open_own(path, "r+b" if self._good else "wb") as file:
            file.truncate(self._good)
            if not self._good:
                file.write(_line({"key": key}))

    def _read(self) -> None:
        try:
            lines = self.path.read_bytes().splitlines(keepends=True)
        except OSError:
            return
        for index, line in enumerate(lines):
            try:
                entry = parse_json(line)
                if not line.endswith(b"\n") or (index == 0 and entry["key"] != self.key):
                    return
                if index:
                    self.values[str(entry["name"])] = entry["value"]
            except (ValueError, KeyError, TypeError):
                return
            self._good += len(line)

    def add(self, name: str, value: Any) -> None:
        """Record a finished piece; it is on disk when this returns."""
        with open_own(self.path, "ab") as file:
            file.write(_line({"name": name, "value": value}))
            file.flush()
            os.fsync(file.fileno())
        self.values[name] = value


def _line(entry: dict[str, Any]) -> bytes:
    return json.dumps(entry).encode() + b"\n"
