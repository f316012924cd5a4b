"""From files (or a seed) to 16-bit parameters, or a module, on the CPU."""

from __future__ import annotations

from svdq_trt.checkpoint.digest import weights_digest
from svdq_trt.checkpoint.load import Weights, load, open_weights

__all__ = ["Weights", "load", "open_weights", "weights_digest"]
