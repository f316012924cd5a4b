"""``torch.ops.svdq.linear`` -> one ``svdq::SVDQLinear*`` node, chosen by format and activation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript.values import Op, Opset

from svdq_export.schema import schema
from svdq_trt.contract.ops import DOMAIN, PLUGIN_NAMESPACE, PLUGIN_VERSION, op_type
from svdq_trt.nn.ops import weights_of  # the module registers torch.ops.svdq.linear

OPSET_VERSION = 1  # of the domain


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The table for torch.onnx.export's `custom_translation_table`."""
    return {torch.ops.svdq.linear.default: _linear}


def _linear(x: Any, *arguments: Any) -> Any:
    """The node of one call; the exporter's symbolic values, which stand for tensors, have no public type."""
    weights = weights_of(arguments)
    name = op_type(weights.format, weights.activation)
    node = Op(Opset(DOMAIN, OPSET_VERSION), name, schema(name))
    return node(
        x,
        *weights.tensors.values(),
        group_size=weights.format.weight_group,
        **weights.attributes,
        plugin_version=PLUGIN_VERSION,
        plugin_namespace=PLUGIN_NAMESPACE,
    )
