"""PyTorch to ONNX, with SVDQuant linears as ``svdq::SVDQLinear*`` and ``svdq::SVDQMlp*`` nodes.

Attention is a ``svdq::SVDQAttention*`` node where its module calls torch.ops.svdq.attention.
Imported as ``svdq_export``. One file serves TensorRT with the plugin and ONNX Runtime: each op type comes
with a function body in standard operators. Two variants share its data file: inlined, for TensorRT
without the plugin; float32, for ONNX Runtime where it has no bf16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from svdq_export.exporter import OnnxInfo, export_onnx
    from svdq_export.inline import write_inlined
    from svdq_export.twin import float32_twin, write_float32_twin

__all__ = ["OnnxInfo", "export_onnx", "float32_twin", "write_float32_twin", "write_inlined"]
_MODULES = {
    "OnnxInfo": "exporter",
    "export_onnx": "exporter",
    "float32_twin": "twin",
    "write_float32_twin": "twin",
    "write_inlined": "inline",
}


def __getattr__(name: str) -> Any:  # only the exporter needs torch
    if name not in _MODULES:
        raise AttributeError(f"module 'svdq_export' has no attribute '{name}'")
    import importlib

    return getattr(importlib.import_module(f"svdq_export.{_MODULES[name]}"), name)
