"""From a prompt to a picture on engines alone: ``load`` gives a diffusers pipeline, no torch weights are loaded.

``attach``, ``detach`` and ``Denoiser``, which were here, are in svdq_trt.runtime and svdq_trt.models; their old names
go with the next release.
"""

from __future__ import annotations

import importlib
import warnings
from typing import Any

from svdq_trt.runtime.loading import load

__all__ = ["load"]
_MOVED = {"Denoiser": "models.denoiser", "attach": "runtime.pipeline", "detach": "runtime.pipeline"}


def __getattr__(name: str) -> Any:
    if name not in _MOVED:
        raise AttributeError(f"module 'svdq_trt.pipeline' has no attribute '{name}'")
    warnings.warn(
        f"svdq_trt.pipeline.{name} is now in svdq_trt.runtime; the old name goes with the next release", stacklevel=2
    )
    return getattr(importlib.import_module(f"svdq_trt.{_MOVED[name]}"), name)
