"""Starting our own processes so that none imports or loads what lies in the current folder.

A user who works inside a folder from somebody else must not run what is in it. ``python -m`` puts the current folder
first on sys.path, and an empty entry of a search path means the current folder, too. Standard library only.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

#: searched for programs, modules and libraries; a leading, trailing or double colon makes an empty entry
_SEARCHED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")


def command(module: str) -> list[str]:
    """The command line that runs one of our modules in this Python."""
    return [sys.executable, "-P", "-m", module]


def environment(**more: str) -> dict[str, str]:
    """This process's environment plus `more`, safe for a child and whatever that starts."""
    found = {**os.environ, "PYTHONSAFEPATH": "1", **more}
    for name in _SEARCHED:
        if name in found:
            found[name] = os.pathsep.join(filter(None, found[name].split(os.pathsep)))
    return found


def forget_current_folder() -> None:
    """Take the current folder off sys.path where ``python -m`` put it, unless this package itself comes from there."""
    with suppress(OSError):  # the folder has been deleted: nothing can come from it
        here = Path.cwd().resolve()
        if not sys.flags.safe_path and Path(sys.path[0]).resolve() == here != Path(__file__).resolve().parents[2]:
            del sys.path[0]
