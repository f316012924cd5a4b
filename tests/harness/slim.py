"""An interpreter that has what the package itself requires, and nothing that only its extras bring."""

from __future__ import annotations

import sys
import venv
from pathlib import Path

from svdq_trt.base.extras import EXTRAS

ROOT = Path(__file__).resolve().parents[2]
#: what serving needs none of; tritonclient is Triton's own, and writes the repository
ABSENT = sorted(EXTRAS.keys() - {"tritonclient"})

_BLOCK = f"""
from importlib.machinery import PathFinder

found = PathFinder.find_spec

def find_spec(name, path=None, target=None):
    return None if name.partition(".")[0] in {ABSENT} else found(name, path, target)

PathFinder.find_spec = find_spec
"""


def interpreter(folder: Path) -> Path:
    """Make a virtual environment in `folder` that sees this one's packages but for ABSENT; returns its python3.

    By a .pth file, as an embedded interpreter, which Triton's is, reads no PYTHONPATH.
    """
    venv.create(folder)
    (packages,) = folder.glob("lib/python3*/site-packages")
    (packages / "svdq_slim.py").write_text(_BLOCK)
    (packages / "svdq_export").symlink_to(ROOT / "export")  # as pyproject.toml maps it
    places = [str(ROOT), *(path for path in sys.path if path.endswith("site-packages"))]
    (packages / "svdq_slim.pth").write_text("\n".join(["import svdq_slim", *places]))
    return folder / "bin" / "python3"
