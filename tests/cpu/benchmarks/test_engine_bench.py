"""The engine benchmark's own parts: a graph traced without weights and filled later."""

import onnx
import pytest
import torch
from engine_bench.fill import fill_graph
from engine_bench.model import blank_module, random_module
from engine_bench.rotation import diffusers_rotation

from svdq_export import export_onnx
from svdq_export.write import data_path
from svdq_trt.checkpoint.random_weights import fill_random
from svdq_trt.contract.formats import W4A8
from svdq_trt.models import attention, get_model
from svdq_trt.models.positions import RotaryTable


class Net(torch.nn.Module):
    """A linear, its bias, and a constant of its own."""

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.linear = torch.nn.Linear(64, 96)

    def forward(self, x):
        return self.linear(x) * torch.arange(96.0)


def run(path, x):
    import onnxruntime as ort

    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x.numpy()})[0]


def test_graph_without_weights_filled_later_is_the_whole_model(tmp_path):
    x = torch.randn(5, 64)
    graph, full = tmp_path / "graph.onnx", tmp_path / "full" / "model.onnx"
    info = export_onnx(Net(0), {"x": x}, {"x": {0: "n"}}, ["y"], graph, weights=False)
    assert info.data_bytes == 0 and not data_path(graph).exists()
    external = [t.name for t in onnx.load(graph, load_external_data=False).graph.initializer if t.data_location]
    assert sorted(external) == ["linear.bias", "linear.weight"]

    other = Net(1)  # of the same shape, with weights that the tracer never saw
    full.parent.mkdir()
    fill_graph(graph, other.state_dict(), full)
    onnx.checker.check_model(full, full_check=True)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(run(full, x)), other(x))


def test_fill_refuses_a_tensor_of_another_shape(tmp_path):
    graph = tmp_path / "graph.onnx"
    export_onnx(Net(0), {"x": torch.randn(5, 64)}, {}, ["y"], graph, weights=False)
    state = Net(0).state_dict() | {"linear.weight": torch.zeros(96, 32)}
    with pytest.raises(SystemExit, match=r"linear.weight is float32 \(96, 32\) in the module"):
        fill_graph(graph, state, tmp_path / "model.onnx")
    with pytest.raises(SystemExit, match=r"no tensor linear\.bias"):
        fill_graph(graph, {"linear.weight": Net(0).linear.weight}, tmp_path / "model.onnx")


@pytest.mark.parametrize("name", ["sdxl-tiny", "flux1-tiny"])
def test_blank_module_has_the_tensors_of_the_quantized_one(name):
    spec = get_model(name)
    module = blank_module(spec, W4A8, 16)
    groups = {g.node: g for g in spec.groups(spec.build())}
    for node, group in groups.items():
        layer = module.get_submodule(node)
        assert layer.rank == group.rank(16), node
        assert layer.format.name == ("w4a16" if group.weight_only else "w4a8"), node
    assert all(t.device.type == "cpu" for t in module.state_dict().values())


def test_a_module_filled_by_threads_has_the_weights_of_its_seed():
    spec = get_model("sdxl-tiny")
    module, want = random_module(spec, 3, threads=4), spec.build()
    fill_random(spec, want, 3)
    torch.testing.assert_close(dict(module.named_parameters()), dict(want.named_parameters()), rtol=0, atol=0)


def test_diffusers_rotation_is_the_same_function():
    x, own = torch.randn(2, 5, 3, 8), attention.rotate
    rotary = RotaryTable(10000.0, (8,))(torch.arange(5.0)[:, None])
    with diffusers_rotation(False):
        assert attention.rotate is own
    with diffusers_rotation(True):
        assert attention.rotate is not own
        torch.testing.assert_close(attention.rotate(x, rotary), own(x, rotary))
    assert attention.rotate is own
