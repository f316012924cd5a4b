"""What the plan carries: the attributes of each plugin, and the library when asked to."""

from __future__ import annotations

import numpy as np
import pytest

from svdq_trt.contract import ops
from svdq_trt.contract.attention import EVERY_OP

STATIC = {"lead": (2, 9)}


def test_creator_fields_are_the_contracts_attributes(tensorrt):
    trt = tensorrt.module
    kinds = {"int": trt.PluginFieldType.INT32, "float": trt.PluginFieldType.FLOAT32}
    for op in EVERY_OP.values():
        creator = trt.get_plugin_registry().get_creator(op.op_type, ops.PLUGIN_VERSION, ops.PLUGIN_NAMESPACE)
        assert [(f.name, f.type) for f in creator.field_names] == [(a.name, kinds[a.kind]) for a in op.attributes]


@pytest.mark.parametrize(("op_type", "prefix"), (("SVDQLinearInt4Silu", ""), ("SVDQMlpInt4Gelu", "fc2_")))
def test_plan_holds_op_type_and_attributes(tensorrt, make_graph, node, op_type, prefix):
    shift = np.float32(0.171875)
    attributes = {f"{prefix}act_unsigned": 1, f"{prefix}act_shift": float(shift)}
    plan = tensorrt.build(make_graph([node(op_type, attributes=attributes)], **STATIC)).plan
    plain = tensorrt.build(make_graph([node(op_type)], **STATIC)).plan
    assert plan is not None and plain is not None
    for name in (op_type, *(a.name for a in ops.OPS[op_type].attributes)):
        assert name.encode() + b"\0" in plan
    assert shift.tobytes() in plan and shift.tobytes() not in plain
