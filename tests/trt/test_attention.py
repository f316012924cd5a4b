"""Attention nodes in TensorRT: layers of the plugin, with the contract's outputs, at any size; what is refused."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from svdq_trt.contract.attention import ATTENTION_OPS
from svdq_trt.contract.ops import DOMAIN, PLUGIN_NAMESPACE, PLUGIN_VERSION
from tests.harness.attentions import Attention


def case(op_type: str, **more: Any) -> Attention:
    return Attention(ATTENTION_OPS[op_type], **{"heads": 4, "kv_heads": 2, "d": 64, "parts": 3, "part": 1, **more})


def graph(
    cases: Sequence[Attention], dynamic: str = "", attributes: dict[str, Any] | None = None, **replaced: np.ndarray
) -> onnx.ModelProto:
    """A node of each case, called attention0, ...; inputs are constants but the first of each.

    `dynamic`: the input of that name is the graph's input "in", of [1, l, width], for all cases.
    """
    nodes, inputs, outputs, constants = [], [], [], {}
    for i, one in enumerate(cases):
        names = []
        for name, value in (one.tensors | {k: v for k, v in replaced.items() if k in one.tensors}).items():
            kind = helper.np_dtype_to_tensor_dtype(value.dtype)
            names.append(f"{i}.{name}")
            if name == dynamic:
                names[-1] = "in"
                if all(given.name != "in" for given in inputs):
                    inputs.append(helper.make_tensor_value_info("in", kind, [1, "l", value.shape[-1]]))
            elif len(names) == 1:
                inputs.append(helper.make_tensor_value_info(names[-1], kind, list(value.shape)))
            else:
                constants[names[-1]] = value
        own = [f"{i}.{out.name}" for out in one.op.outputs]
        outputs += [helper.make_tensor_value_info(f"{name}.neg", kind_of(one), None) for name in own]
        numbers = one.settings.of(one.op) | {"plugin_version": PLUGIN_VERSION, "plugin_namespace": PLUGIN_NAMESPACE}
        numbers |= attributes or {}
        nodes.append(helper.make_node(one.op.op_type, names, own, name=f"attention{i}", domain=DOMAIN, **numbers))
        nodes += [helper.make_node("Neg", [name], [f"{name}.neg"]) for name in own]
    made = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(v, n) for n, v in constants.items()])
    opsets = [helper.make_opsetid("", 23), helper.make_opsetid(DOMAIN, 1)]
    return helper.make_model(made, opset_imports=opsets, ir_version=10)


def kind_of(one: Attention) -> int:
    return helper.np_dtype_to_tensor_dtype(next(iter(one.tensors.values())).dtype)


@pytest.mark.parametrize("dtype", ["f16", "bf16"])
def test_every_op_becomes_a_layer_with_the_contracts_outputs(tensorrt, dtype):
    cases = [case(name, dtype=dtype) for name in ATTENTION_OPS]
    built = tensorrt.build(graph(cases))
    assert built.plan is not None, built.errors
    assert built.plugins == {f"attention{i}": one.op.op_type for i, one in enumerate(cases)}
    layers = {layer.nodes[0]: layer for layer in built.layers}
    assert len(layers) == len(cases)
    for i, one in enumerate(cases):
        layer = layers[f"attention{i}"]
        shapes = [(2, 9, 256), (2, 5, 256)][: len(one.op.outputs)]
        assert [out.shape for out in layer.outputs[: len(shapes)]] == shapes
        assert {out.dtype for out in layer.outputs[: len(shapes)]} == {"Half" if dtype == "f16" else "BFloat16"}
        for attribute in one.op.attributes:
            assert attribute.name.encode() + b"\0" in built.plan


def test_tokens_may_be_dynamic_in_either_stream(tensorrt):
    shapes = {"min": (1, 2, 512), "opt": (1, 300, 512), "max": (1, 4608, 512)}
    any_tokens, five, nine = (1, -1, 256), (1, 5, 256), (1, 9, 256)
    for op_types, dynamic, want in (
        (("SVDQAttentionNormed", "SVDQAttentionJoint"), "qkv", [[any_tokens], [any_tokens, five]]),
        (("SVDQAttentionJointNormed",), "added_qkv", [[nine, any_tokens]]),
    ):
        built = tensorrt.build(graph([case(name, b=1) for name in op_types], dynamic=dynamic), shapes=shapes)
        assert built.plan is not None, built.errors
        layers = {layer.nodes[0]: layer.outputs for layer in built.layers}
        for i, outputs in enumerate(want):
            assert [out.shape for out in layers[f"attention{i}"][: len(outputs)]] == outputs


def test_sizes_without_an_upper_limit_are_refused(tensorrt):
    built = tensorrt.build(graph([case("SVDQAttention", b=1)], dynamic="qkv"))
    assert built.plan is None


@pytest.mark.parametrize(
    ("op_type", "change", "message"),
    [
        ("SVDQAttention", {"heads": 3}, "heads 3 and kv_heads 2, want both at least 1, and heads a multiple"),
        ("SVDQAttention", {"heads": 0}, "heads 0 and kv_heads 2, want both at least 1"),
        ("SVDQAttention", {"heads": 6}, r"input qkv: \[2, 9, 512\], want rows of 10 heads, each a multiple of 8"),
        ("SVDQAttention", {"scale": float("nan")}, "scale nan, want a finite number, at least 0"),
        ("SVDQAttention", {"scale": 0.0}, "scale 0, want a number above 0"),
        ("SVDQAttentionNormed", {"eps": -1.0}, "eps -1, want a finite number, at least 0"),
        ("SVDQAttentionCross", {"kv_part": 3}, "input kv: .*, want rows of parts of 256, more than kv_part 3"),
        ("SVDQAttentionCross", {"kv_part": -1}, "kv_part -1, want a whole number, at least 0"),
        ("SVDQAttentionNormed", {"q_norm": (63,)}, r"input q_norm: \[63\], want \[64\]"),
        ("SVDQAttentionRotary", {"cos": (8, 64)}, r"input cos: \[8, 64\], want \[9, 64\]"),
        ("SVDQAttentionJointRotary", {"sin": (9, 64)}, r"input sin: \[9, 64\], want \[14, 64\]"),
        ("SVDQAttentionJoint", {"added_qkv": (1, 5, 512)}, r"input added_qkv: \[1, 5, 512\], want \[2, 5, 512\]"),
        ("SVDQAttentionCrossMasked", {"bias": (2, 6)}, r"input bias: \[2, 6\], want \[2, 5\]"),
    ],
)
def test_nodes_that_cannot_be_are_refused_in_one_sentence(tensorrt, op_type, change, message):
    attributes = {name: value for name, value in change.items() if not isinstance(value, tuple)}
    one = case(op_type)
    replaced = {
        name: np.zeros(shape, one.tensors[name].dtype) for name, shape in change.items() if isinstance(shape, tuple)
    }
    built = tensorrt.build(graph([one], attributes=attributes, **replaced))
    assert built.plan is None
    pattern = rf"layer 'attention0' \({op_type}\).*{message}"
    assert any(re.search(pattern, error) for error in built.errors), built.errors


def test_f32_is_refused(tensorrt):
    one = case("SVDQAttention")
    one.tensors.update({name: t.astype(np.float32) for name, t in one.tensors.items()})
    built = tensorrt.build(graph([dataclasses.replace(one)], qkv=one.tensors["qkv"]))
    assert built.plan is None and any("input qkv: float32, want float16 or bfloat16" in e for e in built.errors)
