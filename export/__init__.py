"""PyTorch to ONNX, with SVDQuant linears as ``svdq::SVDQLinear*`` and ``svdq::SVDQMlp*`` nodes.

Attention is a ``svdq::SVDQAttention*`` node where its module calls torch.ops.svdq.attention.
Imported as ``svdq_export``. One file serves TensorRT with the plugin and ONNX Runtime: each op type comes
with a function body in standard operators. Two variants share its data file: inlined, for TensorRT
without the plugin; float32, for ONNX Runtime where it has no bf16.
"""

from svdq_export.exporter import OnnxInfo, export_onnx
from svdq_export.inline import write_inlined
from svdq_export.twin import float32_twin, write_float32_twin

__all__ = ["OnnxInfo", "export_onnx", "float32_twin", "write_float32_twin", "write_inlined"]
