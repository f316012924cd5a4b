"""config.pbtxt against Triton's own protobuf, which tritonclient brings."""

from __future__ import annotations

import subprocess
import sys

import pytest
from msgspec.structs import replace

from svdq_trt.artifact import manifest as manifests
from svdq_trt.artifact.manifest import ShapeRange, Tensor
from svdq_trt.base.errors import ArtifactError, ShapeError, UsageError
from svdq_trt.serve.config import (
    Serving,
    batch_range,
    from_text,
    largest_bytes,
    model_config,
    shared_inputs,
    to_text,
)
from svdq_trt.serve.variants import largest_request
from tests.harness.manifests import write_manifest
from tests.harness.serve_toy import write_toy

pb = pytest.importorskip("tritonclient.grpc.model_config_pb2")


@pytest.fixture
def data(tmp_path):
    return manifests.read(write_toy(tmp_path / "toy"))


def described(tensors) -> list[tuple]:
    return [(t.name, pb.DataType.Name(t.data_type), list(t.dims), t.HasField("reshape")) for t in tensors]


def test_without_merging_the_shapes_are_the_engines(data):
    serving = Serving("toy", "python", "gpu", instances=3)
    config = model_config(data, serving, "model.py", {"svdq_trt_runtime": "session"})
    assert config.max_batch_size == 0 and not config.HasField("dynamic_batching")
    assert described(config.input) == [("x", "TYPE_FP16", [-1, -1], False), ("t", "TYPE_FP32", [-1], False)]
    assert described(config.output) == [("y", "TYPE_FP16", [-1, -1], False)]
    (group,) = config.instance_group
    assert (group.count, group.kind) == (3, pb.ModelInstanceGroup.KIND_GPU)
    assert (config.backend, config.platform, config.default_model_filename) == ("python", "", "model.py")
    assert config.parameters["svdq_trt_runtime"].string_value == "session"


def test_merging_takes_the_batch_axis_out(data):
    config = model_config(data, Serving("toy", "tensorrt", "gpu", queue_delay_us=500), "model.plan", {})
    assert config.max_batch_size == 4 and config.dynamic_batching.max_queue_delay_microseconds == 500
    # t [batch] has no dims left: the client sends [batch, 1], the engine gets [batch]
    assert described(config.input) == [("x", "TYPE_FP16", [-1], False), ("t", "TYPE_FP32", [1], True)]
    assert list(config.input[1].reshape.shape) == []
    assert config.platform == "tensorrt_plan"


def test_text_parses_to_the_same_message(data):
    for delay in (None, 0, 500):
        serving = Serving("toy", "onnxruntime", "cpu", queue_delay_us=delay)
        config = model_config(data, serving, "model.onnx", {"a": 'q"'})
        assert from_text(to_text(config)) == config


def test_tritons_parser_refuses_a_field_it_does_not_know():
    with pytest.raises(ArtifactError, match=r"config\.pbtxt: .*max_batchsize.*, want a model configuration of Triton"):
        from_text("max_batchsize: 4")


@pytest.mark.parametrize(("batch", "got"), [((2, 2, 2), "2 alone"), ((2, 3, 4), "2 to 4"), ((1, 1, 1), "1 alone")])
def test_merging_needs_a_range_of_batches_from_one_on(tmp_path, batch, got):
    data = manifests.read(write_toy(tmp_path / "toy", batch=batch))
    with pytest.raises(UsageError, match=rf"--dynamic-batching: an engine with batch {got}, want .*--batch 1:2:4"):
        model_config(data, Serving("toy", "python", "cpu", queue_delay_us=0), "model.py", {})


def test_merging_needs_a_batch_axis(data):
    fixed = replace(data.outputs[0], shape=ShapeRange((7, 3), (7, 3), (7, 3)))
    data = replace(data, outputs=(fixed,))
    assert batch_range(data) is None
    with pytest.raises(UsageError, match=r"an engine without a batch axis, .* Leave it out"):
        model_config(data, Serving("toy", "python", "cpu", queue_delay_us=0), "model.py", {})


@pytest.fixture
def flux(data):
    """With an input without a batch axis, as FLUX's img_ids."""
    ids = Tensor("ids", "float32", ShapeRange((64, 3), (256, 3), (1024, 3)))
    return replace(data, inputs=(*data.inputs, ids))


def test_an_input_without_a_batch_axis_is_sent_with_one_where_requests_are_merged(flux):
    assert batch_range(flux) == (1, 4) and shared_inputs(flux) == {"ids"}
    config = model_config(flux, Serving("toy", "python", "cpu", queue_delay_us=0), "model.py", {})
    assert described(config.input)[2] == ("ids", "TYPE_FP32", [-1, 3], False)  # behind Triton's batch axis
    config = model_config(flux, Serving("toy", "tensorrt", "gpu"), "model.plan", {})
    assert described(config.input)[2] == ("ids", "TYPE_FP32", [-1, 3], False)  # as the engine has it


@pytest.mark.parametrize("variant", ["tensorrt", "onnxruntime"])
def test_tritons_own_backends_cannot_share_an_input(flux, variant):
    message = (
        rf"no batch axis in ids, which Triton's {variant} backend needs in .*, want --variant python.* or leave it"
    )
    with pytest.raises(UsageError, match=message):
        model_config(flux, Serving("toy", variant, "gpu", queue_delay_us=0), "model.plan", {})


@pytest.mark.parametrize(
    ("delay", "batch", "sizes"),
    [(None, 1, {"x": [2, 16], "t": [2], "ids": [256, 3]}), (0, 2, {"x": [16], "t": [1], "ids": [256, 3]})],
)
def test_warm_up_is_a_request_at_the_opt_shapes(flux, delay, batch, sizes):
    config = model_config(flux, Serving("toy", "python", "gpu", queue_delay_us=delay, warm_up=True), "model.py", {})
    (sample,) = config.model_warmup
    assert {name: list(entry.dims) for name, entry in sample.inputs.items()} == sizes
    assert sample.batch_size == batch and all(entry.zero_data for entry in sample.inputs.values())
    assert from_text(to_text(config)) == config


def test_cuda_graphs(data):
    ours = model_config(data, Serving("toy", "python", "gpu", cuda_graphs=True, warm_up=True), "model.py", {})
    assert ours.parameters["svdq_trt_cuda_graphs"].string_value == "1" and ours.model_warmup[0].count == 2
    tritons = model_config(data, Serving("toy", "tensorrt", "gpu", cuda_graphs=True), "model.plan", {})
    (spec,) = tritons.optimization.cuda.graph_spec
    assert tritons.optimization.cuda.graphs and spec.batch_size == 0
    assert {name: list(shape.dim) for name, shape in spec.input.items()} == {"x": [2, 16], "t": [2]}
    for variant, device in (("python", "cpu"), ("onnxruntime", "gpu")):
        with pytest.raises(
            UsageError, match=rf"--cuda-graphs: --variant {variant} --device {device}, want TensorRT on"
        ):
            model_config(data, Serving("toy", variant, device, cuda_graphs=True), "model.py", {})


def test_dtype_that_triton_lacks_is_refused(data):
    data = replace(data, outputs=(replace(data.outputs[0], dtype="float64"),))
    with pytest.raises(ShapeError, match="'y': float64, want one of float16"):
        model_config(data, Serving("toy", "python", "cpu"), "model.py", {})


def test_largest_request(data):
    assert largest_bytes(data) == 4 * 32 * 2 + 4 * 4 + 4 * 32 * 2


def test_largest_picture_is_not_that_of_a_tile(tmp_path):
    sizes = {"min": 64, "opt": 128, "max": 2048}
    write_manifest(tmp_path, config={"height": sizes, "width": sizes | {"max": 1024}})
    assert largest_request(tmp_path, Serving("toy", "pipeline", "gpu")) == 2048 * 1024 * 3


def test_without_tritonclient_the_extra_is_named(tmp_path):
    write_toy(tmp_path / "toy")
    code = (
        "import sys; sys.modules['tritonclient'] = None; from svdq_trt.cli import main; "
        f"sys.exit(main(['triton', {str(tmp_path / 'toy')!r}, '--repository', {str(tmp_path / 'repo')!r}, "
        "'--variant', 'python']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 1 and 'pip install "svdq-trt[triton]"' in done.stderr
    assert not (tmp_path / "repo").exists()
