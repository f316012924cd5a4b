"""config.pbtxt against Triton's own protobuf, which tritonclient brings."""

from __future__ import annotations

import subprocess
import sys

import pytest
from msgspec.structs import replace

from svdq_trt.artifact import manifest as manifests
from svdq_trt.artifact.manifest import ShapeRange, Tensor
from svdq_trt.base.errors import ShapeError, UsageError
from svdq_trt.serve.config import Serving, batch_range, dims, from_text, largest_bytes, model_config, to_text
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
    from google.protobuf.text_format import ParseError

    with pytest.raises(ParseError, match="max_batchsize"):
        from_text("max_batchsize: 4")


def test_merging_needs_a_range_of_batches(tmp_path):
    data = manifests.read(write_toy(tmp_path / "toy", batch=(2, 2, 2)))
    with pytest.raises(UsageError, match=r"--dynamic-batching: an engine with batch 2 alone, want .*--batch"):
        model_config(data, Serving("toy", "python", "cpu", queue_delay_us=0), "model.py", {})
    assert dims(data.inputs[0]) == [2, -1]


def test_tensors_without_the_batch_axis_leave_no_batch(data):
    shape = ShapeRange((7, 3), (7, 3), (7, 3))
    data = replace(data, inputs=(*data.inputs, Tensor("ids", "float32", shape)))
    assert batch_range(data) is None
    with pytest.raises(UsageError, match="no common batch axis"):
        model_config(data, Serving("toy", "python", "cpu", queue_delay_us=0), "model.py", {})


def test_dtype_that_triton_lacks_is_refused(data):
    data = replace(data, outputs=(replace(data.outputs[0], dtype="float64"),))
    with pytest.raises(ShapeError, match="'y': float64, want one of float16"):
        model_config(data, Serving("toy", "python", "cpu"), "model.py", {})


def test_largest_request(data):
    assert largest_bytes(data) == 4 * 32 * 2 + 4 * 4 + 4 * 32 * 2


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
