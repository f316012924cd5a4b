"""Numerical limits of the tests, each with its reason. dB = 10·log10(signal / noise).

Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """A lower bound on a signal-to-noise ratio."""

    db: float
    reason: str


#: Kernel against the fp64 reference on the same codes and scales, by output dtype. A wrong scale, a swapped
#: pair of codes or a lost term of the sum brings it below 40 dB.
KERNEL_ERROR: dict[str, Limit] = {
    "f16": Limit(60.0, "about 73 dB from rounding y and t to f16, and a margin"),
    "bf16": Limit(45.0, "about 55 dB from rounding y and t to bf16, and a margin"),
}
