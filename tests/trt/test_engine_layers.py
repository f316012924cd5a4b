"""Every op type becomes a plugin layer of the compiled engine, with the right shapes."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from svdq_trt.contract import ops
from svdq_trt.contract.formats import Activation, Dtype
from svdq_trt.engine.plugin_layers import engine_layers

DYNAMIC = {"min": (1, 1, 128), "opt": (2, 77, 128), "max": (2, 512, 128)}
FIRST_OF_FORMAT = [o for o in ops.LINEAR_OPS.values() if o.activation is Activation.NONE]


def check_layer(layer, op, n, k, r, lead, dtype):
    """The layer's tensors are the contract's, in its order. n and r: of each linear, where there are several."""
    scale = dtype if op.format.wscale_dtype is Dtype.ACT else "Int8"
    shapes, dtypes, width = [(*lead, k)], [dtype], k
    for linear, rows, rank in zip(op.linears, np.atleast_1d(n), np.atleast_1d(r), strict=True):
        shapes += ops.input_shapes(op.format, rows, width, rank).values()
        dtypes += ["Int8", scale, dtype, dtype, dtype, dtype, "Float"]
        width = linear.activation.n_out(rows)
    assert [t.shape for t in layer.inputs] == shapes
    assert [t.dtype for t in layer.inputs] == dtypes
    assert layer.outputs[0].shape == (*lead, width)
    assert layer.outputs[0].dtype == dtype


@pytest.mark.parametrize("op", ops.LINEAR_OPS.values(), ids=lambda o: o.op_type)
def test_build_every_op_sm89_is_plugin_layer(tensorrt, make_graph, node, op):
    n = 192
    built = tensorrt.build(make_graph([node(op.op_type, n=n), node(op.op_type, n=64, r=32)], k=128), shapes=DYNAMIC)
    # Two nodes in a row; the second reads what the first left. K of the second must suit: 192 or, halved, 96.
    if op.activation.gated:
        assert built.plan is None
        assert any("K = 96, want a multiple of 64" in e for e in built.errors)
        built = tensorrt.build(make_graph([node(op.op_type, n=256), node(op.op_type, n=64, r=32)]), shapes=DYNAMIC)
        n = 256
    assert built.plan is not None, built.errors
    assert built.plugins == {"linear0": op.op_type, "linear1": op.op_type}
    assert [layer.nodes for layer in built.layers] == [("linear0",), ("linear1",)]
    check_layer(built.layers[0], op, n, 128, 16, (-1, -1), "Half")
    check_layer(built.layers[1], op, 64, op.activation.n_out(n), 32, (-1, -1), "Half")


@pytest.mark.parametrize("op", ops.MLP_OPS.values(), ids=lambda o: o.op_type)
def test_build_two_linears_are_one_plugin_layer(tensorrt, make_graph, node, op):
    n, r = (256, 64), (16, 32)
    for dtype, name, sm in (("f16", "Half", 89), ("bf16", "BFloat16", 120)):
        graph = make_graph([node(op.op_type, n=n, r=r)], dtype=dtype)
        built = tensorrt.build(graph, sm=sm, shapes=DYNAMIC)
        assert built.plan is not None, built.errors
        assert built.plugins == {"linear0": op.op_type}
        assert [layer.nodes for layer in built.layers] == [("linear0",)]
        check_layer(built.layers[0], op, n, 128, r, (-1, -1), name)


@pytest.mark.parametrize("sm", [80, 86, 120])
@pytest.mark.parametrize("op", FIRST_OF_FORMAT, ids=lambda o: o.op_type)
def test_build_bf16_other_arch_is_plugin_layer(tensorrt, make_graph, node, op, sm):
    built = tensorrt.build(make_graph([node(op.op_type)], dtype="bf16"), sm=sm, shapes=DYNAMIC)
    assert built.plan is not None, built.errors
    assert len(built.layers) == 1
    check_layer(built.layers[0], op, 128, 128, 16, (-1, -1), "BFloat16")


@pytest.mark.parametrize("op_type", ["SVDQLinearInt4Geglu", "SVDQLinearInt4Swiglu"])
@pytest.mark.parametrize("lead", [(17,), (2, 3, 5), (1, 2, 3, 4)], ids=lambda s: f"rank{len(s) + 1}")
def test_build_other_input_rank_keeps_leading_dims(tensorrt, make_graph, node, lead, op_type):
    op = ops.OPS[op_type]
    built = tensorrt.build(make_graph([node(op.op_type)], lead=lead))
    assert built.plan is not None, built.errors
    check_layer(built.layers[0], op, 128, 128, 16, lead, "Half")


@pytest.mark.parametrize("op", [*FIRST_OF_FORMAT, ops.OPS["SVDQMlpInt4Gelu"]], ids=lambda o: o.op_type)
def test_build_rank_zero_is_plugin_layer(tensorrt, make_graph, node, op):
    built = tensorrt.build(make_graph([node(op.op_type, r=0)]), shapes=DYNAMIC)
    assert built.plan is not None, built.errors
    assert len(built.layers) == 1
    assert built.layers[0].outputs[0].shape == (-1, -1, 128)


def test_build_without_group_size_takes_the_formats(tensorrt, make_graph, node):
    built = tensorrt.build(make_graph([node("SVDQLinearNVFP4", drop_attributes=("group_size",))]), shapes=DYNAMIC)
    assert built.plan is not None, built.errors


def test_every_node_of_a_layer_is_read():
    """TensorRT puts one of two characters between the nodes that a layer was made from."""
    for between in ("\x1e", "\x1f"):
        nodes = between.join(f"[ONNX Layer: {name}]" for name in ("blocks.0.attn", "ids[0]", "add"))
        line = (
            f"Name: a, LayerType: custom_layer, Inputs: [], Outputs: [], TacticName: , StreamId: 0, Metadata: {nodes}"
        )
        layers = engine_layers(f"Layers:\n{line}\n{line}\n")
        assert [layer.nodes for layer in layers] == [("blocks.0.attn", "ids[0]", "add")] * 2


def test_what_is_computed_of_constants_alone_is_no_node_of_the_plugin(tensorrt, make_graph, node):
    model = make_graph([node("SVDQLinearInt4")])
    (linear,) = [n for n in model.graph.node if n.domain == ops.DOMAIN]
    bias = linear.input[-1]
    linear.input[-1] = "twice"
    model.graph.node.insert(0, helper.make_node("Add", [bias, bias], ["twice"], name="twice"))
    built = tensorrt.build(model, shapes=DYNAMIC)
    assert built.plugins == {"linear0": "SVDQLinearInt4"}
    assert [set(layer.nodes) for layer in built.layers] == [{"linear0", "twice"}]
    assert built.report.plugin_nodes(built.plugins) == ["linear0"]
