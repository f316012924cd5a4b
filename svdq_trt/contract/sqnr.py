"""Signal to quantization noise, in dB. Standard library only."""

from __future__ import annotations

import math


def decibels(error: float) -> float:
    """SQNR in dB of a relative squared error, at most 300."""
    return -10 * math.log10(max(error, 1e-30))
