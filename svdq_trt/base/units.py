"""Sizes as people write them."""

from __future__ import annotations

import re
from fractions import Fraction

from svdq_trt.base.errors import UsageError


def parse_bytes(option: str, text: str) -> int:
    """Parse ``2200000000``, ``2.2GB``, ``700 MB`` or ``1.5GiB`` as bytes, rounded down. Raises UsageError."""
    units = {
        "": 1,
        "b": 1,
        **{f"{p}b": 1000**i for i, p in enumerate("kmgt", 1)},
        **{f"{p}ib": 1024**i for i, p in enumerate("kmgt", 1)},
    }
    match = re.fullmatch(r"(\d+(?:\.\d*)?)\s*([a-z]*)", text.strip().lower())
    if match is None or match[2] not in units:
        raise UsageError(option, f"'{text}'", "a number of bytes, or one with kB, MB, GB, KiB, MiB or GiB")
    return int(Fraction(match[1]) * units[match[2]])
