"""TensorRT for RTX builds the files on a machine without a GPU and without the plugin, from the bodies."""

from __future__ import annotations

import onnx_ir as ir
import pytest
import torch

from svdq_export import export_onnx, write_inlined
from svdq_trt.contract.formats import NVFP4, Activation
from svdq_trt.contract.ops import LINEAR_OPS
from tests.harness.export_toy import TOY_DYNAMIC, Toy, one_node, run_file, tensors, toy_inputs

trt = pytest.importorskip("tensorrt_rtx")


def build(parse, arch: str) -> bytes:
    """Parse and build for an arch; every dynamic dimension 1 to 8."""
    builder = trt.Builder(trt.Logger(trt.Logger.ERROR))
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, trt.Logger(trt.Logger.ERROR))
    assert parse(parser), [parser.get_error(i).desc() for i in range(parser.num_errors)]
    config = builder.create_builder_config()
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(trt.ComputeCapability, arch), 0)
    profile = builder.create_optimization_profile()
    for i in range(network.num_inputs):
        tensor = network.get_input(i)
        profile.set_shape(tensor.name, *([n if d < 0 else d for d in tensor.shape] for n in (1, 4, 8)))
    config.add_optimization_profile(profile)
    plan = builder.build_serialized_network(network, config)
    assert plan is not None
    return bytes(plan)


@pytest.mark.parametrize("op", LINEAR_OPS.values(), ids=list(LINEAR_OPS))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
def test_body_builds_without_the_plugin(op, dtype):
    rank = 0 if op.activation in (Activation.NONE, Activation.GEGLU) else 16
    model = ir.to_proto(one_node(op, tensors(op.format, 48, 192, rank, dtype), 3)).SerializeToString()
    assert build(lambda parser: parser.parse(model), "SM120" if op.format is NVFP4 else "SM89")


def test_exported_file_builds_without_the_plugin(tmp_path):
    path = tmp_path / "toy.onnx"
    info = export_onnx(Toy(torch.float16).eval(), toy_inputs(torch.float16), TOY_DYNAMIC, ["out"], path)
    inlined = write_inlined(path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["toy.inlined.onnx", "toy.onnx", "toy.onnx.data"]
    assert ir.load(inlined).opset_imports == {"": 23} and len(ir.load(inlined).functions) == 0
    assert build(lambda parser: parser.parse_from_file(str(inlined)), "SM120")
    inputs = toy_inputs(torch.float16)
    assert torch.equal(run_file(inlined, inputs), run_file(info.path, inputs))
