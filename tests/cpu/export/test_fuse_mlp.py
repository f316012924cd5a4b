"""SVDQMlp nodes: the body is that of the two nodes in a row, and the pass makes them where it may and nowhere else."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
import torch
from torch import nn

from svdq_export import export_onnx
from svdq_export.passes.functions import add_bodies
from svdq_export.passes.mlp import fuse_mlps
from svdq_trt.contract.formats import Activation
from svdq_trt.contract.ops import LINEAR_OPS, MLP_OPS, linear_names
from tests.harness.export_toy import SvdqNode, in_a_row, random_x, run_file, runner, svdq, tensors

K, HIDDEN, N, RANK = 128, 192, 48, 3
UNSIGNED = {"act_unsigned": 1, "act_shift": 0.171875}


def node(op_type: str, seed: int, k: int, n: int, dtype=torch.float16, **attributes: float) -> SvdqNode:
    """A linear's node with random weights, K columns and N_out = n."""
    op = LINEAR_OPS[op_type]
    rows = n * op.activation.rows_per_feature
    return SvdqNode(op, tensors(op.format, rows, k, 16 * seed, dtype, seed), attributes)


def pair(fc1: str, fc2: str, dtype=torch.float16, **attributes: float) -> ir.Model:
    """Two nodes in a row, of different ranks; the second with `attributes`."""
    return in_a_row([node(fc1, 1, K, HIDDEN, dtype), node(fc2, 2, HIDDEN, N, dtype, **attributes)], RANK)


def fused(model: ir.Model, count: int = 1) -> ir.Model:
    """The model after the pass, with the bodies that it needs then."""
    assert fuse_mlps(model) == count
    model.functions.clear()
    add_bodies(model)
    return model


def svdq_nodes(model: ir.Model) -> list[ir.Node]:
    return [n for n in model.graph if n.domain == "svdq"]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
@pytest.mark.parametrize("op", MLP_OPS.values(), ids=list(MLP_OPS))
def test_body_equals_the_two_nodes_bit_for_bit_and_keeps_nan_in_its_row(op, dtype):
    fc1, fc2 = (f"SVDQLinear{op.format.stem}{linear.activation.value}" for linear in op.linears)
    attributes = UNSIGNED if op.format.name == "int4" else {}
    model = pair(fc1, fc2, dtype, **attributes)
    x = random_x(K, dtype)
    x[1, 4, 5], x[0, 3, 100] = torch.nan, -torch.inf
    want = runner(model)(x)
    (one,) = svdq_nodes(fused(model))
    assert one.op_type == op.op_type and [a.name for a in op.attributes] == [
        name for name in one.attributes if not name.startswith("plugin_")
    ]
    proto = ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    assert [f.name for f in proto.functions] == [op.op_type]
    got = runner(model)(x)
    assert want.isnan().any(-1).sum() == 2 and torch.equal(want.isnan(), got.isnan())
    assert torch.equal(want.nan_to_num(), got.nan_to_num())


def test_node_takes_the_names_inputs_and_attributes_of_both():
    model = fused(pair("SVDQLinearInt4GeluTanh", "SVDQLinearInt4", **UNSIGNED))
    (one,) = svdq_nodes(model)
    assert one.op_type == "SVDQMlpInt4GeluTanh" and one.version is None
    assert one.name == "layer0+layer1" and linear_names(one.name) == ["layer0", "layer1"]
    names = ("qweight", "wscale", "act_mul", "lora_down", "lora_up", "bias", "wscale2")
    assert [v.name for v in one.inputs[1:]] == [f"layer{i}.{name}" for i in (0, 1) for name in names]
    assert {name: a.value for name, a in one.attributes.items()} == {
        "group_size": 64,
        "plugin_version": "1",
        "plugin_namespace": "svdq",
        "fc1_act_unsigned": 0,
        "fc1_act_shift": 0.0,
        "fc2_act_unsigned": 1,
        "fc2_act_shift": 0.171875,
    }


@pytest.mark.parametrize(
    ("fc1", "fc2"),
    [
        ("SVDQLinearInt4", "SVDQLinearInt4"),  # no activation between
        ("SVDQLinearInt4Silu", "SVDQLinearInt4"),  # one that no op type has
        ("SVDQLinearInt4Gelu", "SVDQLinearInt4Gelu"),  # another one after it
        ("SVDQLinearInt4Gelu", "SVDQLinearNVFP4"),
        ("SVDQLinearInt4Gelu", "SVDQLinearW4A16"),
        ("SVDQLinearW4A8Gelu", "SVDQLinearW4A8"),  # formats without such an op
        ("SVDQLinearW4A16Geglu", "SVDQLinearW4A16"),
        ("SVDQLinearW4A8Swiglu", "SVDQLinearW4A8"),
    ],
)
def test_pairs_without_an_op_stay(fc1, fc2):
    model = pair(fc1, fc2)
    fused(model, 0)
    assert [n.op_type for n in svdq_nodes(model)] == [fc1, fc2]


def read_twice(graph: ir.Graph, hidden: ir.Value) -> None:
    """A second reader, whose result is a further output."""
    neg = ir.node("Neg", [hidden], name="also")
    neg.outputs[0].name, neg.outputs[0].type, neg.outputs[0].shape = "also", hidden.type, hidden.shape
    graph.insert_after(hidden.producer(), neg)
    graph.outputs.append(neg.outputs[0])


def given_out(graph: ir.Graph, hidden: ir.Value) -> None:
    graph.outputs.append(hidden)


def something_between(graph: ir.Graph, hidden: ir.Value) -> None:
    ((reader, index),) = hidden.uses()
    neg = ir.node("Neg", [hidden], name="between")
    graph.insert_before(reader, neg)
    reader.replace_input_with(index, neg.outputs[0])


def read_as_another_input(graph: ir.Graph, hidden: ir.Value) -> None:
    """The first node's output as the next node's bias: senseless, but no pair either."""
    ((reader, index),) = hidden.uses()
    reader.replace_input_with(index, graph.node("in").outputs[0])
    reader.replace_input_with(6, hidden)


@pytest.mark.parametrize("change", [read_twice, given_out, something_between, read_as_another_input])
def test_a_hidden_that_others_need_stays(change):
    model = pair("SVDQLinearInt4Gelu", "SVDQLinearInt4")
    change(model.graph, svdq_nodes(model)[0].outputs[0])
    fused(model, 0)
    assert len(svdq_nodes(model)) == 2


def test_pairs_in_a_row_are_found_each_once():
    row = [
        node("SVDQLinearInt4Gelu", 1, K, K),
        node("SVDQLinearInt4", 2, K, K),
        node("SVDQLinearInt4", 1, K, K),
        node("SVDQLinearInt4Swiglu", 2, K, K),
        node("SVDQLinearInt4", 1, K, K),
    ]
    model, x = in_a_row(row, RANK), random_x(K, torch.float16) * 1e-4  # five layers with random branches: it grows
    want = runner(model)(x)
    assert want.isfinite().all()
    assert [n.name for n in svdq_nodes(fused(model, 2))] == ["layer0+layer1", "layer2", "layer3+layer4"]
    assert torch.equal(runner(model)(x), want)


class FeedForward(nn.Module):
    """A FeedForward as in diffusers, with a dropout between the linears; inside a wrapper, as the models are."""

    def __init__(self) -> None:
        super().__init__()
        first = svdq("int4", K, 2 * HIDDEN, 16, torch.float16, Activation.GEGLU)
        second = svdq("int4", HIDDEN, K, 32, torch.float16, act_unsigned=True, act_shift=0.171875)
        self.model = nn.Module()
        self.model.net = nn.ModuleList([first, nn.Dropout(0.5), second])

    def forward(self, x):
        """Twice, so that names repeat."""
        for module in (*self.model.net, *self.model.net):
            x = module(x)
        return x


def test_exported_feed_forward_is_one_node_and_the_option_keeps_two(tmp_path):
    inputs, info = {"x": random_x(K, torch.float16) * 1e-3}, {}
    for fuse in (True, False):
        info[fuse] = export_onnx(
            FeedForward().eval(),
            inputs,
            {"x": {1: "m"}},
            ["y"],
            tmp_path / f"{fuse}.onnx",
            wrapped="model",
            fuse_mlp=fuse,
        )
    assert info[True].svdq_nodes == ("net.0+net.2", "net.0#2+net.2#2") and info[True].op_types == ("SVDQMlpInt4Geglu",)
    assert info[False].svdq_nodes == ("net.0", "net.2", "net.0#2", "net.2#2")
    assert torch.equal(run_file(info[True].path, inputs), run_file(info[False].path, inputs))
