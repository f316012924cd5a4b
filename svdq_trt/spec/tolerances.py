"""Numerical limits of the tests, each with its reason. dB = 10·log10(signal / noise). Standard library only."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Limit:
    """A lower bound on a signal-to-noise ratio."""

    db: float
    reason: str


#: Kernel against the fp64 reference on the same codes and scales, by output dtype.
KERNEL_ERROR: dict[str, Limit] = {
    "f16": Limit(60.0, "rounding y and t to f16 alone gives about 73 dB; a wrong scale or a lost term gives below 40"),
    "bf16": Limit(45.0, "rounding y and t to bf16 gives about 55 dB; a wrong scale or a lost term gives below 40"),
}
