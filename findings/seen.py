"""How a finding says what it saw, and ends when that is no longer what was found."""

import sys
from typing import Any


def seen(what: str, got: Any, want: Any) -> None:
    """Print `what` and `got`; exit with 1 where `got` is not `want`, the finding."""
    print(f"{what}: {got}", flush=True)
    if got != want:
        sys.exit(f"changed: it was {want}")
