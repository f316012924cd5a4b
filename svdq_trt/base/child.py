"""Starting our own processes so that none imports or loads what lies in the current folder.

A user who works inside a folder from somebody else must not run what is in it. ``python -m`` puts the current folder
first on sys.path, and an empty entry of a search path means the current folder, too. Standard library only.
"""

from __future__ import annotations

import os
import sys
import sysconfig
from contextlib import suppress
from pathlib import Path

_ROOT = Path(__file__).resolve().parents[2]  # the folder that this package lies in
#: searched for programs, modules and libraries; a leading, trailing or double colon makes an empty entry
_SEARCHED = ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")


def command(module: str) -> list[str]:
    """The command line that runs one of our modules in this Python."""
    return [sys.executable, "-P", "-m", module]


def environment(**more: str) -> dict[str, str]:
    """This process's environment plus `more`, safe for a child and whatever that starts.

    The child finds this very package, also where it lies in a source folder that nothing has installed: a build's
    stages must run the code that their keys were computed from.
    """
    found = {**os.environ, "PYTHONSAFEPATH": "1", **more}
    if _ROOT not in (Path(sysconfig.get_path(kind)) for kind in ("purelib", "platlib")):
        found["PYTHONPATH"] = os.pathsep.join((str(_ROOT), found.get("PYTHONPATH", "")))
    for name in _SEARCHED:
        if name in found:
            found[name] = os.pathsep.join(filter(None, found[name].split(os.pathsep)))
    return found


def forget_current_folder() -> None:
    """Take the current folder off sys.path if ``python -m`` put it there, unless this package itself lies in it."""
    with suppress(OSError):  # the folder has been deleted: nothing can come from it
        here = Path.cwd().resolve()
        if sys.argv[:1] == ["-m"] and Path(sys.path[0]).resolve() == here != _ROOT and not sys.flags.safe_path:
            del sys.path[0]
