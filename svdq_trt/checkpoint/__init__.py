"""From files (or a seed) to 16-bit parameters, or a module, on the CPU."""

from __future__ import annotations

from svdq_trt.checkpoint.digest import Identity, identify_weights
from svdq_trt.checkpoint.load import Weights, load, open_weights

__all__ = ["Identity", "Weights", "identify_weights", "load", "open_weights"]
