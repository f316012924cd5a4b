"""Text for people: names from files appear as they are, on one line, and control nothing.

Names of folders, layers and tensors come from outside. A control character or a line break in them must neither control
the terminal nor forge a line. Standard library only; tables and bars, with rich: console.py.
"""

from __future__ import annotations

import sys
from typing import TextIO


def quoted(text: str) -> str:
    r"""`text` with what cannot be printed escaped as Python does: ``\n``, ``\x1b``, ``\u202e``, ``\udcff``."""
    return text if text.isprintable() else "".join(c if c.isprintable() else _escaped(c) for c in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")


def say(*lines: object, file: TextIO | None = None) -> None:
    """Print each of `lines` on a line of its own, on stdout unless `file` is given."""
    print(*(quoted(str(line)) for line in lines), sep="\n", file=sys.stdout if file is None else file)
