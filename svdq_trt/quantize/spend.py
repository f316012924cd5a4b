"""Choosing one option per node, by a byte budget or an error target, so that bytes go where they pay most.

Every node has options (bytes, error): a rank each, and its linears left in 16 bit. Errors of nodes add up, so this is
the multiple-choice knapsack problem. It is solved by Lagrange multipliers (Everett 1963; for quantizers Shoham and
Gersho, "Efficient bit allocation for an arbitrary set of quantizers", IEEE ASSP 36, 1988): for a price per byte, each
node by itself takes the option with the least error + price * bytes, a corner of the lower convex hull of its options.
As the price falls, nodes move along their hulls one segment at a time, the steepest of all first. After each such move
the choice is optimal for the bytes it takes; for a budget between two moves, the moves that still fit follow, and the
error is above the optimum by less than the first move that did not fit would have saved.

More bytes never give a larger error: where a larger budget first takes a move that a smaller one has no room for, that
move saves more than all that the smaller one can still put into the room it has left, as every later move is flatter.
Deterministic: equal slopes go in the order of the nodes.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

KEEP = -1  # the "rank" of a node whose linears stay in 16 bit


@dataclass(frozen=True)
class Option:
    """One way to store a node: its rank or KEEP, its bytes, and its share of the model's error."""

    rank: int
    bytes: int
    error: float


@dataclass(frozen=True)
class _Move:
    """One segment of a node's hull: from the option before to `option`."""

    node: str
    option: Option
    bytes: int
    saves: float


def hull(options: Sequence[Option]) -> list[Option]:
    """The lower convex hull from the cheapest option on: more bytes, less error, each byte worth less than before."""
    corners: list[Option] = []
    for option in sorted(options, key=lambda o: (o.bytes, o.error, o.rank)):
        if corners and option.error >= corners[-1].error:
            continue
        while len(corners) > 1 and _slope(corners[-1], option) >= _slope(corners[-2], corners[-1]):
            corners.pop()
        corners.append(option)
    return corners


def _slope(a: Option, b: Option) -> float:
    """Error saved per byte from a to b."""
    return (a.error - b.error) / (b.bytes - a.bytes)


def fit_budget(options: Mapping[str, Sequence[Option]], budget: int) -> dict[str, Option] | None:
    """Choose an option per node, at most `budget` bytes in all; None where the cheapest ones take more."""
    choice, moves = _start(options)
    room = budget - total_bytes(choice)
    if room < 0:
        return None
    stuck: set[str] = set()  # a node whose next move did not fit stays where it is
    for move in moves:
        if move.node in stuck:
            continue
        if move.bytes <= room:
            choice[move.node] = move.option
            room -= move.bytes
        else:
            stuck.add(move.node)
    return choice


def reach_error(options: Mapping[str, Sequence[Option]], error: float) -> dict[str, Option] | None:
    """Choose the fewest bytes whose errors add up to at most `error`; None where no choice does.

    The result is some moves in order and one more, of any node, that suffices: the cheapest such combination.
    """
    choice, moves = _start(options)
    if total_error(choice) <= error:
        return choice
    best, least, at = None, 0, total_bytes(choice)
    for done, move in enumerate(moves):
        lacking = total_error(choice) - error
        if lacking <= 0:
            break
        next_of: dict[str, _Move] = {}
        for later in moves[done:]:
            next_of.setdefault(later.node, later)
        for node, last in next_of.items():
            if best is not None and at + last.bytes >= least:
                continue
            tried = {**choice, node: last.option} if last.saves >= lacking * (1 - 1e-9) else {}
            if tried and total_error(tried) <= error:
                best, least = tried, at + last.bytes
        choice[move.node] = move.option
        at += move.bytes
    return best


def total_bytes(choice: Mapping[str, Option]) -> int:
    """Bytes of all nodes together."""
    return sum(option.bytes for option in choice.values())


def total_error(choice: Mapping[str, Option]) -> float:
    """Error of all nodes together, rounded once: the same in any order."""
    return math.fsum(option.error for option in choice.values())


def _start(options: Mapping[str, Sequence[Option]]) -> tuple[dict[str, Option], list[_Move]]:
    """Every node's cheapest option, and all moves, steepest first; a node's own stay in order, as hulls are convex."""
    hulls = {node: hull(some) for node, some in options.items()}
    moves = [
        _Move(node, b, b.bytes - a.bytes, a.error - b.error)
        for node, corners in hulls.items()
        for a, b in itertools.pairwise(corners)
    ]
    moves.sort(key=lambda m: -m.saves / m.bytes)
    return {node: corners[0] for node, corners in hulls.items()}, moves
