"""PyTorch to ONNX, with SVDQuant linears as ``svdq::SVDQLinear*`` nodes.

Imported as ``svdq_export``. One file serves TensorRT with the plugin, TensorRT without it and ONNX Runtime:
each op type travels with a function body in standard operators.
"""

from svdq_export.exporter import OnnxInfo, export_onnx

__all__ = ["OnnxInfo", "export_onnx"]
