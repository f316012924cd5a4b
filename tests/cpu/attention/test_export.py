"""Attention nodes of a traced graph: their names and attributes, and their bodies in ONNX Runtime against fp64."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from torch import Tensor, nn
from torch.export import Dim

from svdq_export import OnnxInfo, export_onnx, write_float32_twin, write_inlined
from svdq_trt.contract.attention import ATTENTION_OPS, AttentionOp
from svdq_trt.nn.attention import Call, apply
from tests.harness.attentions import TORCH_DTYPE, Attention, db
from tests.harness.export_toy import session

SHARED = ("qkv", "q", "kv", "added_qkv", "cos", "sin", "joint_cos", "joint_sin", "bias")
#: act dtype -> SQNR in dB: what rounding q, k and the output costs; bf16 runs as its f32 twin
LIMITS = {"f16": 68, "bf16": 50}


class One(nn.Module):
    """One op; norms are its parameters."""

    def __init__(self, case: Attention) -> None:
        super().__init__()
        self.op, self.settings = case.op, case.settings
        for name, tensor in case.call().tensors.items():
            if name.endswith("norm"):
                self.register_parameter(name, nn.Parameter(tensor, requires_grad=False))

    def forward(self, shared: dict[str, Tensor]) -> tuple[Tensor, ...]:
        names = {t.name: t.name for t in self.op.inputs}
        if "Joint" in self.op.op_type:
            names |= {name: f"joint_{name}" for name in ("cos", "sin") if name in names}
        tensors = {name: getattr(self, name) if name.endswith("norm") else shared[own] for name, own in names.items()}
        return apply(Call(self.op, tensors, self.settings))


class All(nn.Module):
    """Every op, on inputs of the graph."""

    def __init__(self, cases: dict[str, Attention]) -> None:
        super().__init__()
        self.ops = nn.ModuleDict({name: One(case) for name, case in cases.items()})

    def forward(
        self,
        qkv: Tensor,
        q: Tensor,
        kv: Tensor,
        added_qkv: Tensor,
        cos: Tensor,
        sin: Tensor,
        joint_cos: Tensor,
        joint_sin: Tensor,
        bias: Tensor,
    ) -> tuple[Tensor, ...]:
        shared = dict(zip(SHARED, (qkv, q, kv, added_qkv, cos, sin, joint_cos, joint_sin, bias), strict=True))
        return tuple(y for one in self.ops.values() for y in one(shared))


def cases(dtype: str, tokens: int, text: int, b: int = 2) -> dict[str, Attention]:
    """An attention of each op on the same inputs."""

    def case(op: AttentionOp) -> Attention:
        return Attention(op, dtype, b=b, tokens=tokens, text=text, parts=3, part=1, seed=4)

    return {name: case(op) for name, op in ATTENTION_OPS.items()}


def shared_of(tensors: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Each input of the graph, from the first op that has it."""
    found: dict[str, Any] = {}
    for name, own in tensors.items():
        for key, value in own.items():
            found.setdefault(f"joint_{key}" if "Joint" in name and key in ("cos", "sin") else key, value)
    return {name: found[name] for name in SHARED}


class Exported(NamedTuple):
    dtype: str
    path: Path
    info: OnnxInfo


@pytest.fixture(scope="module", params=list(TORCH_DTYPE))
def exported(request, tmp_path_factory) -> Exported:
    made = cases(request.param, 9, 5)
    inputs = shared_of({name: one.call().tensors for name, one in made.items()})
    b, tokens, text = Dim("b", min=1, max=4), Dim("l", min=2, max=64), Dim("t", min=2, max=64)
    shapes = {
        **{name: {0: b, 1: tokens} for name in ("qkv", "q")},
        **{name: {0: b, 1: text} for name in ("kv", "added_qkv", "bias")},
        **{name: {0: tokens} for name in ("cos", "sin")},
        **{name: {0: Dim.DYNAMIC} for name in ("joint_cos", "joint_sin")},
    }
    path = tmp_path_factory.mktemp("attention") / "all.onnx"
    outputs = [f"{name}.{out.name}" for name, op in ATTENTION_OPS.items() for out in op.outputs]
    return Exported(request.param, path, export_onnx(All(made), inputs, shapes, outputs, path))


def test_nodes_bear_their_modules_names_and_the_settings(exported):
    assert exported.info.svdq_nodes == tuple(f"ops.{name}" for name in ATTENTION_OPS)
    assert exported.info.op_types == tuple(sorted(ATTENTION_OPS))
    graph = onnx.load(exported.path, load_external_data=False).graph
    for node in graph.node:
        if node.domain == "svdq":
            values = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            want = Attention(ATTENTION_OPS[node.op_type], parts=3, part=1).settings.of(ATTENTION_OPS[node.op_type])
            assert {k: pytest.approx(v) for k, v in want.items()}.items() <= values.items()
            assert (values["plugin_version"], values["plugin_namespace"]) == (b"1", b"svdq")


@pytest.mark.parametrize(("b", "tokens", "text"), [(2, 9, 5), (1, 33, 7)])
def test_bodies_match_the_reference_at_any_size(exported, b, tokens, text):
    path = exported.path if exported.dtype == "f16" else write_float32_twin(exported.path)
    made = cases(exported.dtype, tokens, text, b)
    shared = shared_of({name: one.tensors for name, one in made.items()})
    feed = {name: t if exported.dtype == "f16" else t.astype(np.float32) for name, t in shared.items()}
    got = iter(session(str(path)).run(None, feed))
    for name, one in made.items():
        for want in one.reference():
            assert db(want, torch.from_numpy(next(got))) > LIMITS[exported.dtype], name


def test_inlined_graph_builds_in_tensorrt_without_the_plugin(exported):
    trt = pytest.importorskip("tensorrt_rtx")
    logger = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    assert parser.parse_from_file(str(write_inlined(exported.path)))
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(trt.ComputeCapability.SM89, 0)
    profile = builder.create_optimization_profile()
    sizes = [
        shared_of({n: c.tensors for n, c in cases("f16", t, t // 2, b).items()}) for b, t in ((1, 4), (2, 9), (4, 64))
    ]
    for name in SHARED:
        profile.set_shape(name, *(one[name].shape for one in sizes))
    config.add_optimization_profile(profile)
    assert builder.build_serialized_network(network, config) is not None


def test_inlined_graph_has_standard_operators_only(exported):
    model = onnx.load(write_inlined(exported.path), load_external_data=False)
    assert {node.domain for node in model.graph.node} == {""} and not model.functions
