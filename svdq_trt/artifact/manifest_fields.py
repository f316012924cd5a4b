"""Meanings of the fields of manifest.json, from its classes: for ``svdq-trt verify --help`` and docs/manifest.md."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any, get_args

import msgspec

from svdq_trt.artifact.entry import Entry
from svdq_trt.artifact.manifest import Manifest


def fields(entry: type[Entry]) -> list[tuple[str, str, tuple[type[Entry], ...]]]:
    """List (name in the file, meaning, entries that it holds) of every field, in the order of the file."""
    found = []
    for field in msgspec.structs.fields(entry):
        _, meta = get_args(field.type)
        found.append((field.encode_name, meta.description, tuple(_entries(field.type))))
    return found


def overview() -> str:
    """The manifest's own fields, one a line."""
    width = max(len(name) for name, *_ in fields(Manifest)) + 2
    lines = []
    for name, meaning, parts in fields(Manifest):
        inner = f": {', '.join(n for part in parts for n, *_ in fields(part))}" if parts else ""
        lines += textwrap.wrap(
            f"  {name:{width}}{meaning}{inner}", 110, subsequent_indent=" " * (width + 2), break_on_hyphens=False
        )
    return "\n".join(lines)


def _entries(hint: Any) -> Iterator[type[Entry]]:
    if isinstance(hint, type) and issubclass(hint, Entry):
        yield hint
    for inner in get_args(hint):
        yield from _entries(inner)
