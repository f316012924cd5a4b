"""Run engine folders from Python: ``Session`` in TensorRT on a GPU, ``OnnxSession`` in ONNX Runtime anywhere.

``attach`` runs a diffusers pipeline on one of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from svdq_trt.runtime.activations import SharedActivations
    from svdq_trt.runtime.onnx_session import OnnxSession
    from svdq_trt.runtime.pipeline import attach, detach
    from svdq_trt.runtime.protocol import Runner
    from svdq_trt.runtime.session import Session

__all__ = ["OnnxSession", "Runner", "Session", "SharedActivations", "attach", "detach"]
_MODULES = {
    "OnnxSession": "onnx_session",
    "Runner": "protocol",
    "Session": "session",
    "SharedActivations": "activations",
    "attach": "pipeline",
    "detach": "pipeline",
}


def __getattr__(name: str) -> Any:  # each loads its own libraries
    if name not in _MODULES:
        raise AttributeError(f"module 'svdq_trt.runtime' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(f"svdq_trt.runtime.{_MODULES[name]}"), name)
