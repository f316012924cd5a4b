"""The torch ops -> svdq nodes: ``linear`` by format and activation, attention by what inputs a call has."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from onnxscript.values import Op, Opset

from svdq_export.schema import schema
from svdq_trt.contract.ops import DOMAIN, PLUGIN_NAMESPACE, PLUGIN_VERSION, op_type
from svdq_trt.nn.attention import TORCH_OPS, Call
from svdq_trt.nn.ops import weights_of  # the module registers torch.ops.svdq.linear

OPSET_VERSION = 1  # of the domain


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """The table for torch.onnx.export's `custom_translation_table`."""
    return {
        torch.ops.svdq.linear.default: _linear,
        **{op: _attention(names) for op, names in TORCH_OPS.items()},
    }


def _linear(x: Any, *arguments: Any) -> Any:
    """The node of one call; the exporter's symbolic values, which stand for tensors, have no public type."""
    weights = weights_of(arguments)
    numbers = {"group_size": weights.format.weight_group, **weights.attributes}
    return _node(op_type(weights.format, weights.activation), [x, *weights.tensors.values()], numbers)


def _attention(names: Sequence[str]) -> Callable[..., Any]:
    """The translation of the torch op with inputs `names`."""

    def attention(*arguments: Any) -> Any:
        call = Call.of(names, arguments)
        return _node(call.op.op_type, list(call.tensors.values()), call.settings.of(call.op))

    return attention


def _node(name: str, inputs: Sequence[Any], numbers: dict[str, float]) -> Any:
    node = Op(Opset(DOMAIN, OPSET_VERSION), name, schema(name))
    return node(*inputs, **numbers, plugin_version=PLUGIN_VERSION, plugin_namespace=PLUGIN_NAMESPACE)
