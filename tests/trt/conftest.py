"""What the TensorRT tests share: the module with the plugin loaded, tiny ONNX graphs, and a builder.

Everything here runs without a GPU: TensorRT-RTX builds ahead of time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from svdq_trt.base.errors import ArtifactError
from svdq_trt.contract import ops
from svdq_trt.contract.formats import Dtype
from svdq_trt.engine import plugin_lib
from svdq_trt.engine.plugin_layers import EngineLayer, LayerReport, network_plugins

DTYPES = {"f16": np.dtype(np.float16), "bf16": np.dtype(ml_dtypes.bfloat16)}


@pytest.fixture(scope="session")
def library() -> plugin_lib.PluginLibrary:
    try:
        return plugin_lib.find()
    except ArtifactError as error:
        if "trt" in os.environ.get("SVDQ_REQUIRE", "").split(","):
            raise
        pytest.skip(str(error))


@dataclass
class Node:
    """One node with random weights, of which `weights` replaces some; n and r are those of each linear in it."""

    op_type: str
    n: int | tuple[int, ...] = 128
    r: int | tuple[int, ...] = 16
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)
    drop_attributes: tuple[str, ...] = ()

    @property
    def sizes(self) -> list[tuple[int, int]]:
        """(N, R) of each linear."""
        count = len(ops.OPS[self.op_type].linears)
        return list(zip(*(v if isinstance(v, tuple) else (v,) * count for v in (self.n, self.r)), strict=True))


@pytest.fixture(scope="session")
def node() -> type[Node]:
    return Node


@pytest.fixture(scope="session")
def make_graph() -> Callable[..., onnx.ModelProto]:
    """`make_graph(nodes, k=, dtype=, lead=)`: an element-wise op, the nodes in a row, another such op."""

    def make(
        nodes: Sequence[Node], k: int = 128, dtype: str = "f16", lead: Sequence[Any] = ("b", "m")
    ) -> onnx.ModelProto:
        rng, act = np.random.default_rng(0), DTYPES[dtype]
        onnx_act = helper.np_dtype_to_tensor_dtype(act)
        consts = {"half": np.array(0.5, act)}
        graph_nodes = [helper.make_node("Mul", ["in", "half"], ["t0"], name="before")]
        width = k
        for i, spec in enumerate(nodes):
            op = ops.OPS[spec.op_type]
            names = [f"t{i}"]
            for linear, (n, r) in zip(op.linears, spec.sizes, strict=True):
                for constant in ops.CONSTANTS:
                    name, shape = linear.prefix + constant.name, constant.shape_of(op.format, n, width, r)
                    stored = constant.dtype_of(op.format)
                    if name in spec.weights:
                        value = spec.weights[name]
                    elif stored is Dtype.INT8:
                        value = rng.integers(-100, 100, shape).astype(np.int8)
                    else:
                        value = rng.standard_normal(shape).astype(np.float32 if stored is Dtype.F32 else act)
                    names.append(f"linear{i}.{name}")
                    consts[names[-1]] = value
                width = linear.activation.n_out(n)
            attributes = {a.name: int(a.default) if a.kind == "int" else a.default for a in op.attributes}
            attributes["group_size"] = op.format.weight_group
            attributes |= {"plugin_version": ops.PLUGIN_VERSION, "plugin_namespace": ops.PLUGIN_NAMESPACE}
            attributes |= spec.attributes
            for name in spec.drop_attributes:
                del attributes[name]
            graph_nodes.append(
                helper.make_node(spec.op_type, names, [f"t{i + 1}"], name=f"linear{i}", domain=ops.DOMAIN, **attributes)
            )
        graph_nodes.append(helper.make_node("Neg", [f"t{len(nodes)}"], ["out"], name="after"))
        graph = helper.make_graph(
            graph_nodes,
            "g",
            [helper.make_tensor_value_info("in", onnx_act, [*lead, k])],
            [helper.make_tensor_value_info("out", onnx_act, [*lead, width])],
            [numpy_helper.from_array(v, n) for n, v in consts.items()],
        )
        opsets = [helper.make_opsetid("", 23), helper.make_opsetid(ops.DOMAIN, 1)]
        return helper.make_model(graph, opset_imports=opsets, ir_version=10)

    return make


@dataclass
class Built:
    """What TensorRT made of a graph. `plan` is None where it refused."""

    plan: bytes | None
    plugins: dict[str, str]
    report: LayerReport
    errors: list[str]

    @property
    def layers(self) -> list[EngineLayer]:
        """Those of the plugin."""
        return self.report.plugins


class TensorRT:
    """TensorRT-RTX with the plugin loaded. One logger: TensorRT keeps the first that a process gives it."""

    def __init__(self, library: plugin_lib.PluginLibrary) -> None:
        self.module: Any = pytest.importorskip("tensorrt_rtx", exc_type=ImportError)
        self.library = library
        trt, messages = self.module, []

        class Logger(trt.ILogger):
            def __init__(self) -> None:
                trt.ILogger.__init__(self)

            def log(self, severity: Any, message: str) -> None:
                messages.append((severity, message))

        self.messages: list[tuple[Any, str]] = messages
        self.logger = Logger()
        plugin_lib.load_into(trt, library.path)
        self.builder = trt.Builder(self.logger)

    def build(
        self,
        model: onnx.ModelProto,
        sm: int = 89,
        shapes: dict[str, Any] | list[dict[str, Any]] | None = None,
    ):
        """Parse and build for sm_<sm>; `shapes` = min, opt, max of the input "in", or a list: one profile each."""
        trt = self.module
        self.messages.clear()
        network = self.builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
        parser = trt.OnnxParser(network, self.logger)
        plan, plugins = None, {}
        if parser.parse(model.SerializeToString()):
            plugins = network_plugins(trt, network)
            config = self.builder.create_builder_config()
            config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
            config.num_compute_capabilities = 1
            config.set_compute_capability(getattr(trt.ComputeCapability, f"SM{sm}"), 0)
            for ranges in [shapes] if isinstance(shapes, dict) else shapes or []:
                profile = self.builder.create_optimization_profile()
                profile.set_shape("in", ranges["min"], ranges["opt"], ranges["max"])
                config.add_optimization_profile(profile)
            built = self.builder.build_serialized_network(network, config)
            plan = None if built is None else bytes(built)
        report = LayerReport()
        for _, message in self.messages:
            report.feed(message)
        errors = [m for s, m in self.messages if s <= trt.ILogger.ERROR]
        return Built(plan, plugins, report, errors)


@pytest.fixture(scope="session")
def tensorrt(library: plugin_lib.PluginLibrary) -> TensorRT:
    return TensorRT(library)
