"""``torch.ops.svdq.linear`` -> one ``svdq::SVDQLinear*`` node, chosen by format and activation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from onnxscript.values import Op, Opset

from svdq_export.schema import schema
from svdq_trt.contract.formats import FORMATS, Activation
from svdq_trt.contract.ops import DOMAIN, PLUGIN_NAMESPACE, PLUGIN_VERSION, op_type
from svdq_trt.nn import ops  # noqa: F401  (registers torch.ops.svdq.linear)

OPSET_VERSION = 1  # of the domain


def translation_table() -> dict[Callable[..., Any], Callable[..., Any]]:
    """For torch.onnx.export's `custom_translation_table`."""
    return {torch.ops.svdq.linear.default: _linear}


def _linear(  # type: ignore[no-untyped-def]  # the exporter's symbolic values have no public type
    x,
    qweight,
    wscale,
    act_mul,
    lora_down,
    lora_up,
    bias,
    wscale2,
    format: str,
    activation: str,
    act_unsigned: int = 0,
    act_shift: float = 0.0,
):
    fmt = FORMATS[format]
    name = op_type(fmt, Activation(activation))
    node = Op(Opset(DOMAIN, OPSET_VERSION), name, schema(name))
    return node(
        x,
        qweight,
        wscale,
        act_mul,
        lora_down,
        lora_up,
        bias,
        wscale2,
        group_size=fmt.weight_group,
        act_unsigned=int(act_unsigned),
        act_shift=float(act_shift),
        plugin_version=PLUGIN_VERSION,
        plugin_namespace=PLUGIN_NAMESPACE,
    )
