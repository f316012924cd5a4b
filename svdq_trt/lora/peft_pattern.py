r"""PEFT's patterns of layer names, which are regular expressions from a file: matched without ever running one.

PEFT takes the first pattern for which ``re.match(rf"(.*\.)?({pattern})$", name)`` is true (peft/utils/other.py,
get_pattern_key). A regular expression that somebody else wrote can take forever in Python's `re`, which tries one way
after the other. Here all ways are followed at once, as the set of places that they have reached: at most
len(name) + 1 of them. tests/cpu/lora/test_peft_pattern.py compares the two.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from dataclasses import dataclass

#: places in the name -> places in the name: from where a part may start to where it may end
_Step = Callable[[str, frozenset[int]], frozenset[int]]

_CHARS = 256  # in a pattern: a layer's name has at most 100
_NESTED = 2  # repeats inside repeats: each level costs up to len(name) rounds of the level below
_QUANTIFIER = re.compile(r"(?:[*+?]|\{(\d{1,2})(,(\d{1,2})?)?\})\??(?![*+?{])")
_CLASS = re.compile(r"\[\^?\]?(?:\\.|[^\]\\\[])*\]")
_ESCAPE = re.compile(r"\\(?:[dDwWsS]|[^\w\s])")


class UnknownPatternError(ValueError):
    """A pattern with something in it that is not understood here; says what."""


def matches(pattern: str, name: str) -> bool:
    """Whether PEFT applies `pattern` to the layer `name`. Raises UnknownPatternError."""
    starts = {0} | {i + 1 for i, char in enumerate(name) if char == "."}
    return len(name) in _compiled(pattern)(name, frozenset(starts))


@functools.lru_cache(maxsize=4096)
def _compiled(pattern: str) -> _Step:
    if len(pattern) > _CHARS:
        raise UnknownPatternError(f"{len(pattern)} characters")
    parser = _Parser(pattern)
    step, _ = parser.choice()
    if parser.at < len(pattern):
        raise UnknownPatternError(f"'{pattern[parser.at :]}'")
    return step


@dataclass
class _Parser:
    """Recursive descent; each method returns what it read, and how deep repeats are nested in it."""

    text: str
    at: int = 0

    def choice(self) -> tuple[_Step, int]:
        branches = [self._sequence()]
        while self.text[self.at : self.at + 1] == "|":
            self.at += 1
            branches.append(self._sequence())
        steps = [step for step, _ in branches]
        return lambda name, at: frozenset().union(*(step(name, at) for step in steps)), max(d for _, d in branches)

    def _sequence(self) -> tuple[_Step, int]:
        steps, deepest = [], 0
        while self.at < len(self.text) and self.text[self.at] not in "|)":
            step, depth = self._repeated()
            steps.append(step)
            deepest = max(deepest, depth)
        return lambda name, at: functools.reduce(lambda places, step: step(name, places), steps, at), deepest

    def _repeated(self) -> tuple[_Step, int]:
        step, depth = self._atom()
        if self.text[self.at : self.at + 1] not in ("*", "+", "?", "{"):
            return step, depth
        found = _QUANTIFIER.match(self.text, self.at)
        if found is None or depth == _NESTED:
            raise UnknownPatternError(f"'{self.text[self.at :]}'")
        self.at = found.end()
        least, most = {"*": (0, None), "+": (1, None), "?": (0, 1)}.get(found[0][0], (int(found[1] or 0), None))
        if found[1] is not None:
            most = int(found[1]) if found[2] is None else None if found[3] is None else int(found[3])
        if most is not None and most < least:
            raise UnknownPatternError(f"'{found[0]}'")
        return functools.partial(_repeat, step, least, most), depth + 1

    def _atom(self) -> tuple[_Step, int]:
        char = self.text[self.at]
        if char == "(":
            self.at += 3 if self.text.startswith("(?:", self.at) else 1
            inner = self.choice()
            if self.text[self.at : self.at + 1] != ")":
                raise UnknownPatternError("a '(' without ')'")
            self.at += 1
            return inner
        if char in "^$":
            self.at += 1
            return (lambda name, at: at & {0 if char == "^" else len(name)}), 0
        found = _CLASS.match(self.text, self.at) if char == "[" else _ESCAPE.match(self.text, self.at)
        if found is None and char in "[]{}*+?\\":
            raise UnknownPatternError(f"'{self.text[self.at :]}'")
        one = found[0] if found else char if char == "." else re.escape(char)
        self.at += len(found[0]) if found else 1
        try:
            test = re.compile(one).match  # of one character: nothing to try twice
        except re.error as error:
            raise UnknownPatternError(f"'{one}' ({error})") from None
        return (lambda name, at: frozenset(i + 1 for i in at if i < len(name) and test(name[i]))), 0


def _repeat(step: _Step, least: int, most: int | None, name: str, at: frozenset[int]) -> frozenset[int]:
    reached, found, count = at, at if least == 0 else frozenset[int](), 0
    while reached and count != most:
        ahead, count = step(name, reached), count + 1
        if count >= least:
            if ahead <= found:
                break
            found |= ahead
        elif ahead == reached:  # as it goes on to be
            return found | ahead
        reached = ahead
    return found
