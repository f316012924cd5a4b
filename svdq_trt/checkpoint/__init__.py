"""From files (or a seed) to a 16-bit module on the CPU."""

from __future__ import annotations

from svdq_trt.checkpoint.digest import weights_digest
from svdq_trt.checkpoint.load import load

__all__ = ["load", "weights_digest"]
