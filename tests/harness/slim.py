"""An interpreter of its own that has this one's packages, by default none of those that only extras bring."""

from __future__ import annotations

import sys
import venv
from collections.abc import Sequence
from pathlib import Path

from svdq_trt.base.extras import EXTRAS

ROOT = Path(__file__).resolve().parents[2]
#: what serving needs none of; tritonclient is Triton's own, and writes the repository
ABSENT = sorted(EXTRAS.keys() - {"tritonclient"})

_BLOCK = """
from importlib.machinery import PathFinder

found = PathFinder.find_spec

def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in {absent} else found(name, path, target)

PathFinder.find_spec = find_spec
"""


def interpreter(folder: Path, absent: Sequence[str] = ABSENT) -> Path:
    """Make an environment in `folder` that sees what is on this one's path but for `absent`; returns its python3.

    By a .pth file, as an embedded interpreter, which Triton's is, reads no PYTHONPATH.
    """
    venv.create(folder)
    (packages,) = folder.glob("lib/python3*/site-packages")
    (packages / "svdq_slim.py").write_text(_BLOCK.format(absent=list(absent)))
    (packages / "svdq_export").symlink_to(ROOT / "export")  # as pyproject.toml maps it
    places = [str(ROOT), *filter(None, sys.path)]
    (packages / "svdq_slim.pth").write_text("\n".join(["import svdq_slim", *places]))
    return folder / "bin" / "python3"
