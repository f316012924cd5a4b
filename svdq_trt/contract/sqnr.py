"""Signal to quantization noise, in dB. Standard library only."""

from __future__ import annotations

import math

#: of equal values
MOST_DB = 300.0


def decibels(error: float) -> float:
    """SQNR in dB of a relative squared error, at most MOST_DB."""
    return -10 * math.log10(max(error, 10 ** (-MOST_DB / 10)))
