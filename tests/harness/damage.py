"""Damaged JSON, and how many damaged files a run tries."""

from __future__ import annotations

import copy
import json
import os
import random
from typing import Any

#: values that a field may have instead of its own
ODD: list[Any] = [None, True, False, 0, 1, -1, 3, 89, 2**31, 2**53, 2**63, 2**64, 10**30, 0.5, -0.0, 1e308, 1e-320]
ODD += ["", "x", "0" * 64, "a\nb", "\x1b[2J", "\u202e", "\ud800", "..", "/etc/passwd", "a/b", "\0", "é" * 300]
ODD += ["sm_89", "model.onnx", "float16", "float8_e4m3fn", "<2M", "*", "0.0", "sdxl-tiny", "pixart-tiny", "flux1-tiny"]
ODD += [[], {}, [0], [None], ["x"], [[]], {"x": 1}, [1, 2, 3], [1] * 70, {"min": 1, "opt": 1, "max": 1}, {"": None}]
#: texts that no encoder of ours writes
TEXTS = [
    "",
    "{",
    "[]",
    "null",
    "0",
    '"x"',
    "{}",
    "[" * 20_000,
    '{"a":' * 5_000,
    "NaN",
    "\ufeff{}",
    '{"version": 1e999}',
]


def tries(sample: int) -> int:
    """How many files a test damages: SVDQ_FUZZ, or in every run `sample` of them."""
    return int(os.environ.get("SVDQ_FUZZ", sample))


def damaged(rng: random.Random, text: str) -> bytes:
    """A JSON text with one to three damages; each leaves the rest as it was."""
    choice = rng.random()
    if choice < 0.05:
        return rng.choice(TEXTS).encode("utf-8", "surrogatepass")
    if choice < 0.15:
        raw = bytearray(text.encode())
        for _ in range(rng.randint(1, 4)):
            raw[rng.randrange(len(raw))] = rng.randrange(256)
        return bytes(raw[: rng.choice([len(raw), len(raw), rng.randrange(len(raw))])])
    data = json.loads(text)
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        _change(rng, data)
    return json.dumps(data).encode()


def _change(rng: random.Random, data: Any) -> None:
    """Replace, remove, repeat or add one value somewhere inside `data`, in place."""
    places = [(data, key) for key in _keys(data)]
    for holder, key in places:
        places += [(holder[key], inner) for inner in _keys(holder[key])]
    if not places:
        return
    # A place at the top as often as one deep inside: long lists would have all the damage otherwise.
    holder, key = rng.choice(places if rng.random() < 0.5 else [(data, key) for key in _keys(data)])
    choice = rng.randrange(8)
    if choice == 0:
        del holder[key]
    elif choice == 1 and isinstance(holder, list):
        holder.append(copy.deepcopy(holder[key]))
    elif choice == 2 and isinstance(holder[key], list | dict) and _keys(holder[key]):
        holder[key] = holder[key][rng.choice(_keys(holder[key]))]
    elif choice == 3:
        other, name = rng.choice(places)
        if other is not holder and name in _keys(other):
            holder[key] = copy.deepcopy(other[name])
    elif choice == 4 and isinstance(holder[key], str):
        holder[key] = f"{holder[key]}{rng.choice(('x', '/', chr(0), chr(10), '.', ' '))}"
    elif choice == 5 and type(holder[key]) in (int, float):
        holder[key] *= rng.choice((-1, 2, 1000, 10**9))
    else:
        holder[key] = copy.deepcopy(rng.choice(ODD))


def _keys(value: Any) -> list[Any]:
    if isinstance(value, dict):
        return list(value)
    return list(range(len(value))) if isinstance(value, list) else []
