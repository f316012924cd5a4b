"""Run engine folders from Python."""

from __future__ import annotations

from svdq_trt.runtime.session import Session

__all__ = ["Session"]
