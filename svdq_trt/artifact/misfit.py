"""JSON that does not fit its class, in our words."""

from __future__ import annotations

import re

from svdq_trt.base.errors import ArtifactError

AGAIN = "Build the engine again."


def misfit(where: str, reason: str) -> ArtifactError:
    """Translate msgspec's ``Expected `int`, got `str` - at `$.plan.bytes` `` into our words."""
    reason, _, place = reason.partition(" - at ")
    field = place.strip("`").removeprefix("$").removeprefix(".")
    got, want = reason, "what a build writes"
    if found := re.fullmatch(r"Object missing required field `(\w+)`", reason):
        field, got, want = f"{field}.{found[1]}".lstrip("."), "missing", "the field"
    elif found := re.fullmatch(r"Expected `(.+)`, got `(.+)`", reason):
        want, got = (_with_article(kind) for kind in found.groups())
    elif found := re.fullmatch(r"Expected `(\w+)` (.+)", reason):
        got, want = "another value", f"{_with_article(found[1])} {found[2].replace('`', '')}"
    return ArtifactError(f"{where}: {field}" if field else where, got, want, AGAIN)


def _with_article(kind: str) -> str:
    """``an int or null`` for msgspec's ``int | null``."""
    return ("an " if kind[0] in "aeiou" else "a ") + kind.replace(" | ", " or ")
