"""The inputs of each quantized linear: per-channel maxima and sampled rows."""

from __future__ import annotations

from svdq_trt.artifact.calibration import Calibration
from svdq_trt.calibrate.collect import collect

__all__ = ["Calibration", "collect"]
