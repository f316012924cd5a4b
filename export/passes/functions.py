"""Attach the function bodies of exactly the op types that the graph uses."""

from __future__ import annotations

import onnx_ir as ir

from svdq_export.bodies import build_function
from svdq_export.translate import OPSET_VERSION
from svdq_trt.contract.attention import EVERY_OP
from svdq_trt.contract.ops import DOMAIN


def add_bodies(model: ir.Model) -> list[str]:
    """Add one model-local function per svdq op type in use; returns their names, sorted."""
    used = sorted({node.op_type for node in model.graph.all_nodes() if node.domain == DOMAIN})
    for op_type in used:
        function = build_function(EVERY_OP[op_type])
        model.functions[function.identifier()] = function
    if used:
        model.opset_imports[DOMAIN] = OPSET_VERSION
    return used
