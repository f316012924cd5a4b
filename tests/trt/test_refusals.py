"""A node that breaks the contract fails to build: the plugin's message is in TensorRT's log, no crash."""

from __future__ import annotations

import re

import ml_dtypes
import numpy as np
import pytest

F16, BF16 = np.float16, np.dtype(ml_dtypes.bfloat16)
STATIC = {"lead": (2, 9)}
MLP = "SVDQMlpInt4Geglu"

#: id -> (node arguments, graph arguments, what the message must say)
MISTAKES = {
    "K not a multiple of 64": ({}, {"k": 96}, "K = 96, want a multiple of 64"),
    "N not a multiple of 8": ({"n": 60}, {}, "N = 60, want a multiple of 8"),
    "N of Geglu not a multiple of 16": (
        {"op_type": "SVDQLinearInt4Geglu", "n": 72},
        {},
        "N = 72, want a multiple of 16",
    ),
    "N of Swiglu not a multiple of 16": (
        {"op_type": "SVDQLinearInt4Swiglu", "n": 72},
        {},
        "N = 72, want a multiple of 16",
    ),
    "R not a multiple of 16": ({"r": 8}, {}, "R = 8, want a multiple of 16"),
    "R beyond the kernels": ({"r": 1040}, {}, "R=1040"),
    "qweight of another K": (
        {"weights": {"qweight": np.zeros((128, 32), np.int8)}},
        {},
        "input qweight: [128, 32], want [128, 64]",
    ),
    "qweight of rank 1": ({"weights": {"qweight": np.zeros(64, np.int8)}}, {}, "input qweight: [64], want"),
    "R of lora_up differs": (
        {"weights": {"lora_up": np.zeros((128, 32), F16)}},
        {},
        "input lora_up: [128, 32], want [128, 16]",
    ),
    "K of lora_down differs": (
        {"weights": {"lora_down": np.zeros((16, 64), F16)}},
        {},
        "input lora_down: [16, 64], want [16, 128]",
    ),
    "wscale transposed": ({"weights": {"wscale": np.ones((128, 2), F16)}}, {}, "input wscale: [128, 2], want [2, 128]"),
    "nvfp4 wscale without its last axis": (
        {"op_type": "SVDQLinearNVFP4", "weights": {"wscale": np.ones((2, 128), np.int8)}},
        {},
        "input wscale: [2, 128], want [2, 128, 4]",
    ),
    "bias of another N": ({"weights": {"bias": np.zeros(64, F16)}}, {}, "input bias: [64], want [128]"),
    "act_mul of another K": ({"weights": {"act_mul": np.ones(64, F16)}}, {}, "input act_mul: [64], want [128]"),
    "w4a8 wscale in float16": (
        {"op_type": "SVDQLinearW4A8", "weights": {"wscale": np.ones((2, 128), F16)}},
        {},
        "input wscale: float16, want int8",
    ),
    "int4 wscale in int8": (
        {"weights": {"wscale": np.ones((2, 128), np.int8)}},
        {},
        "input wscale: int8, want float16",
    ),
    "bias in float32": ({"weights": {"bias": np.zeros(128, np.float32)}}, {}, "input bias: float32, want float16"),
    "wscale2 in float16": ({"weights": {"wscale2": np.ones(128, F16)}}, {}, "input wscale2: float16, want float32"),
    "bias of rank 2": ({"weights": {"bias": np.zeros((1, 128), F16)}}, {}, "input bias: [1, 128], want [128]"),
    "wscale2 of rank 0": ({"weights": {"wscale2": np.float32(1).reshape(())}}, {}, "input wscale2: [], want [128]"),
    "qweight in float16": ({"weights": {"qweight": np.zeros((128, 64), F16)}}, {}, "input qweight: float16, want int8"),
    "lora_down in bfloat16": (
        {"weights": {"lora_down": np.zeros((16, 128), BF16)}},
        {},
        "input lora_down: bfloat16, want float16",
    ),
    "group_size 32": ({"attributes": {"group_size": 32}}, {}, "group_size 32, want 64"),
    "act_unsigned 2": ({"attributes": {"act_unsigned": 2}}, {}, "act_unsigned 2, want 0 or 1"),
    "act_unsigned for w4a8": (
        {"op_type": "SVDQLinearW4A8", "attributes": {"act_unsigned": 1}},
        {},
        "act_unsigned 1, want 0",
    ),
    "act_shift without act_unsigned": ({"attributes": {"act_shift": 0.25}}, {}, "act_shift 0.25, want a finite"),
    "act_shift NaN": ({"attributes": {"act_unsigned": 1, "act_shift": float("nan")}}, {}, "act_shift nan, want"),
    # Two linears in one node: the message says which.
    "K of fc1": ({"op_type": MLP}, {"k": 96}, "fc1_K = 96, want a multiple of 64"),
    "hidden width": ({"op_type": MLP, "n": (192, 64)}, {}, "fc2_K = 96, want a multiple of 64"),
    "N of fc1": ({"op_type": MLP, "n": (72, 64)}, {}, "fc1_N = 72, want a multiple of 16"),
    "N of fc2": ({"op_type": MLP, "n": (128, 60)}, {}, "fc2_N = 60, want a multiple of 8"),
    "R of fc2": ({"op_type": MLP, "r": (16, 8)}, {}, "fc2_R = 8, want a multiple of 16"),
    "R of fc2 beyond the kernels": ({"op_type": MLP, "r": (16, 1040)}, {}, "fc2_R=1040"),
    "fc2 of another hidden width": (
        {"op_type": MLP, "weights": {"fc2_qweight": np.zeros((128, 64), np.int8)}},
        {},
        "input fc2_qweight: [128, 64], want [128, 32]",
    ),
    "bias of fc2": (
        {"op_type": MLP, "weights": {"fc2_bias": np.zeros(64, F16)}},
        {},
        "input fc2_bias: [64], want [128]",
    ),
    "dtype of fc1": (
        {"op_type": MLP, "weights": {"fc1_lora_up": np.zeros((128, 16), BF16)}},
        {},
        "input fc1_lora_up: bfloat16, want float16",
    ),
    "dtype of fc2": (
        {"op_type": "SVDQMlpNVFP4Gelu", "weights": {"fc2_wscale": np.ones((2, 128, 4), F16)}},
        {},
        "input fc2_wscale: float16, want int8",
    ),
    "act_unsigned of fc2": (
        {"op_type": MLP, "attributes": {"fc2_act_unsigned": 2}},
        {},
        "fc2_act_unsigned 2, want 0 or 1",
    ),
    "act_unsigned of fc1 for nvfp4": (
        {"op_type": "SVDQMlpNVFP4Gelu", "attributes": {"fc1_act_unsigned": 1}},
        {},
        "fc1_act_unsigned 1, want 0",
    ),
    "act_shift of fc2 alone": (
        {"op_type": MLP, "attributes": {"fc1_act_unsigned": 1, "fc2_act_shift": 0.25}},
        {},
        "fc2_act_shift 0.25, want a finite number, and 0 where fc2_act_unsigned is 0",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_build_broken_node_is_refused_with_message(tensorrt, make_graph, node, case):
    node_args, graph_args, expected = MISTAKES[case]
    op_type = node_args.get("op_type", "SVDQLinearInt4")
    built = tensorrt.build(make_graph([node(**{"op_type": op_type, **node_args})], **{**STATIC, **graph_args}))
    assert built.plan is None
    ours = [e for e in built.errors if e.startswith("layer 'linear0'")]
    assert ours, built.errors
    assert expected in ours[0]
    assert re.fullmatch(rf"layer 'linear0' \({op_type}\)(, input \w+)?: .+, want .+\.( [A-Z].+\.)?", ours[0])


def test_build_float32_activations_are_refused(tensorrt, make_graph, node, monkeypatch):
    graph = make_graph([node("SVDQLinearInt4")], **STATIC)
    for value in (*graph.graph.input, *graph.graph.output):
        value.type.tensor_type.elem_type = 1  # FLOAT
    half = next(i for i in graph.graph.initializer if i.name == "half")
    half.data_type, half.raw_data = 1, np.array(0.5, np.float32).tobytes()
    built = tensorrt.build(graph)
    assert built.plan is None
    assert any("input x: float32, want float16 or bfloat16." in e for e in built.errors), built.errors


@pytest.mark.parametrize(("op_type", "count"), [("SVDQLinearInt4", 8), (MLP, 15)])
def test_build_missing_input_is_refused(tensorrt, make_graph, node, op_type, count):
    graph = make_graph([node(op_type)], **STATIC)
    linear = next(n for n in graph.graph.node if n.name == "linear0")
    linear.input.pop()
    built = tensorrt.build(graph)
    assert built.plan is None
    message = f"{count - 1} inputs and 1 outputs, want {count} inputs and 1 output."
    assert any(message in e for e in built.errors), built.errors


def test_build_after_refusals_still_works(tensorrt, make_graph, node):
    assert tensorrt.build(make_graph([node("SVDQLinearInt4", n=60)], **STATIC)).plan is None
    assert tensorrt.build(make_graph([node("SVDQLinearInt4")], **STATIC)).plan is not None
