"""Engines inside a diffusers pipeline, where the torch denoiser was."""

from __future__ import annotations

from svdq_trt.pipeline.attach import attach, detach
from svdq_trt.pipeline.denoiser import Denoiser

__all__ = ["Denoiser", "attach", "detach"]
