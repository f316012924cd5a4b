"""The figures as text of at most 80 columns, and as JSON."""

from __future__ import annotations

import string
import textwrap
from collections.abc import Sequence
from typing import Any

from svdq_trt.bench.kinds import GAPS, KINDS, Account
from svdq_trt.bench.rounds import Measured

WIDTH = 80
_NAME = 22
_SIDE_BY_SIDE = 3  # columns of kinds


def table(found: Sequence[Measured]) -> list[str]:
    """The lines: latency, memory and openings of each, kernels by kind, and what to know about them."""
    lines = [f"{'ms':{_NAME + 2}}{'median':>9}{'p10':>9}{'p90':>9}{'ratio':>7}{'GPU GB':>7}{'open s':>7}{'reopen':>8}"]
    first = found[0]
    for letter, one in zip(_letters(), found, strict=False):
        ms, made = one.latency_ms, one.prepared
        times = "".join(f"{ms[name]:9.3f}" for name in ("median", "p10", "p90"))
        again = "" if made.reopen_s is None else f"{made.reopen_s:8.1f}"
        lines.append(
            f"{letter} {_short(one.name):{_NAME}}{times}{one.ratio(first):7.3f}{made.memory_bytes / 1e9:7.2f}"
            f"{made.open_s:7.1f}{again}"
        )
    lines += _kinds(found)
    for note in _notes(found):
        lines += textwrap.wrap(note, WIDTH, break_on_hyphens=False) or [""]
    return lines


def fastest(found: Sequence[Measured]) -> Measured:
    """The one with the lowest median; the first of equals."""
    return min(found, key=lambda one: one.latency_ms["median"])


def to_json(found: Sequence[Measured]) -> list[dict[str, Any]]:
    """All figures, the first one's ratio being 1."""
    rows = []
    for one in found:
        made, parts = one.prepared, one.profile
        rows.append(
            {
                "name": one.name,
                "latency_ms": {name: round(ms, 4) for name, ms in one.latency_ms.items()},
                "ratio": round(one.ratio(found[0]), 4),
                "ratio_by_round": [round(ratio, 4) for ratio in one.ratios(found[0])],
                "rounds_ms": [[round(ms, 4) for ms in times] for times in one.rounds],
                "memory_bytes": made.memory_bytes,
                "open_s": made.open_s,
                "reopen_s": made.reopen_s,
                "kernels": parts.kinds if parts else None,
                "layers_ms": parts.layers_ms if parts else {},
                **made.facts,
            }
        )
    return rows


def _kinds(found: Sequence[Measured]) -> list[str]:
    """Kernels by kind, ms and share of the time in which any ran; a few columns at a time."""
    accounts = {
        letter: one.profile.kinds
        for letter, one in zip(_letters(), found, strict=False)
        if one.profile is not None and one.profile.kinds is not None
    }
    lines: list[str] = []
    letters = list(accounts)
    for start in range(0, len(letters), _SIDE_BY_SIDE):
        shown = [accounts[letter] for letter in letters[start : start + _SIDE_BY_SIDE]]
        head = "".join(f"{letter:>10} {'':7}" for letter in letters[start : start + _SIDE_BY_SIDE])
        lines += ["", f"{'kernels, ms and share':{_NAME + 2}}{head}".rstrip()]
        for kind in (kind for kind in KINDS if any(one[kind]["count"] for one in shown)):
            lines.append(f"{kind:{_NAME + 2}}" + "".join(_share(one, kind) for one in shown))
    return lines


def _share(account: Account, kind: str) -> str:
    busy = sum(row["ms"] for name, row in account.items() if name != GAPS)
    ms = account[kind]["ms"]
    return f"{ms:10.3f} {100 * ms / busy if busy else 0:5.1f} %"


def _notes(found: Sequence[Measured]) -> list[str]:
    """Sentences below the table."""
    notes = []
    first = found[0]
    for letter, one in list(zip(_letters(), found, strict=False))[1:]:
        ratios = one.ratios(first)
        text = f"{letter} takes {one.ratio(first):.3f} of A's time, {min(ratios):.3f} to {max(ratios):.3f} by round."
        notes.append(text + (" The rounds disagree on which is faster." if min(ratios) < 1 < max(ratios) else ""))
    unseen = [letter for letter, one in zip(_letters(), found, strict=False) if one.profile and not one.profile.kinds]
    if unseen:
        notes.append(f"No kernels of {', '.join(unseen)}: torch's profiler sees none here (CUPTI).")
    notes += [note for one in found for note in one.prepared.notes]
    return ["", *notes] if notes else []


def _letters() -> list[str]:
    return list(string.ascii_uppercase)


def _short(name: str) -> str:
    """The end of a name, which tells engines apart, in the column's width."""
    return name if len(name) < _NAME else f"...{name[-(_NAME - 4) :]}"
