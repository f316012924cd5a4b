"""The former place of `attach`, `detach` and `Denoiser`: svdq_trt.runtime and svdq_trt.models; for one more release."""

from __future__ import annotations

import warnings

from svdq_trt.models.denoiser import Denoiser
from svdq_trt.runtime.pipeline import attach, detach

__all__ = ["Denoiser", "attach", "detach"]

warnings.warn("svdq_trt.pipeline is now svdq_trt.runtime; the old name goes with the next release", stacklevel=2)
