"""How every benchmark ends: an exit code, and one line on stderr for what the package refuses."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import NoReturn


def run(main: Callable[[], int | None]) -> NoReturn:
    """Run `main` and exit with what it returns, 0 for None; with an error's own code where it raises a SvdqError."""
    from svdq_trt.base.errors import SvdqError  # quantize_cost.py runs in a checkout that is not installed

    try:
        sys.exit(main())
    except SvdqError as error:
        print(error, file=sys.stderr)
        sys.exit(error.exit_code)
