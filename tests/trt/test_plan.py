"""What the plan carries: the attributes of each plugin, and the library when asked to."""

from __future__ import annotations

import numpy as np
import pytest

from svdq_trt.spec import ops

STATIC = {"lead": (2, 9)}


def fields_of(plugin, trt):
    runtime = plugin.get_capability_interface(trt.PluginCapabilityType.RUNTIME)
    return {f.name: f for f in runtime.get_fields_to_serialize()}


def create(trt, op_type, phase, **values):
    creator = trt.get_plugin_registry().get_creator(op_type, ops.PLUGIN_VERSION, ops.PLUGIN_NAMESPACE)
    kinds = {np.int32: trt.PluginFieldType.INT32, np.float32: trt.PluginFieldType.FLOAT32}
    data = {k: np.array([v]) for k, v in values.items()}  # a field only points to its data
    fields = [trt.PluginField(k, v, kinds[type(values[k])]) for k, v in data.items()]
    return creator.create_plugin("layer", trt.PluginFieldCollection(fields), phase)


def test_creator_fields_are_the_contracts_attributes(tensorrt):
    trt = tensorrt.module
    kinds = {"int": trt.PluginFieldType.INT32, "float": trt.PluginFieldType.FLOAT32}
    for op_type in ops.OPS:
        creator = trt.get_plugin_registry().get_creator(op_type, ops.PLUGIN_VERSION, ops.PLUGIN_NAMESPACE)
        assert [(f.name, f.type) for f in creator.field_names] == [(a.name, kinds[a.kind]) for a in ops.ATTRIBUTES]


def test_plan_holds_op_type_and_attributes(tensorrt, make_graph, node):
    shift = np.float32(0.171875)
    attributes = {"act_unsigned": 1, "act_shift": float(shift)}
    plan = tensorrt.build(make_graph([node("SVDQLinearInt4Silu", attributes=attributes)], **STATIC)).plan
    plain = tensorrt.build(make_graph([node("SVDQLinearInt4Silu")], **STATIC)).plan
    assert plan is not None and plain is not None
    assert b"SVDQLinearInt4Silu\0" in plan
    for name in (a.name for a in ops.ATTRIBUTES):
        assert name.encode() in plan
    assert shift.tobytes() in plan and shift.tobytes() not in plain


def test_embed_library_grows_the_plan_by_its_size(tensorrt, make_graph, node):
    graph = make_graph([node("SVDQLinearInt4")], **STATIC)
    plain, embedded = tensorrt.build(graph).plan, tensorrt.build(graph, embed=True).plan
    size = tensorrt.library.path.stat().st_size
    assert size <= len(embedded) - len(plain) <= size + 4096
    assert tensorrt.library.path.read_bytes() in embedded


@pytest.mark.parametrize("values", [
    {"group_size": np.int32(64), "act_unsigned": np.int32(1), "act_shift": np.float32(0.171875)},
    {"act_shift": np.float32(0.0), "group_size": np.int32(64), "act_unsigned": np.int32(0)},
])  # fmt: skip
def test_fields_round_trip_through_the_runtime_phase(tensorrt, values):
    trt = tensorrt.module
    plugin = create(trt, "SVDQLinearInt4Gelu", trt.TensorRTPhase.BUILD, **values)
    for _ in range(2):  # what is serialized creates a plugin that serializes the same
        got = fields_of(plugin.clone(), trt)
        assert {n: np.asarray(f.data).item() for n, f in got.items()} == {n: v.item() for n, v in values.items()}
        plugin = create(trt, "SVDQLinearInt4Gelu", trt.TensorRTPhase.RUNTIME, **values)
