"""The engine benchmark's own parts: a graph traced without weights and filled later, and the account of time."""

import onnx
import pytest
import torch
from engine_bench.fill import fill_graph
from engine_bench.model import blank_module
from engine_profile import by_kind, kind_of

from svdq_export import export_onnx
from svdq_export.write import data_path
from svdq_trt.contract.formats import W4A8
from svdq_trt.models import get_model


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


def test_times_of_overlapping_kernels_add_up_to_the_run():
    kernels = [
        ("__myl_CastMeanSubMulMean_0x1", 10.0, 0.0),
        ("void svdq::sm90::quantize_once_w4a8_kernel<__half>", 5.0, 12.0),
        ("void svdq::sm90::gemm_w4a8_kernel<2>", 20.0, 13.0),  # starts early, waits, ends 16 us later
        ("__myl_SlicReshTranReshMove_0x2", 3.0, 20.0),  # ends inside the one before
        ("_gemm_mha_v2_0x3", 7.0, 40.0),
    ]
    found = by_kind(kernels)
    assert found["norm"] == {"count": 1, "ms": 0.01}
    assert found["ours: quantize"] == {"count": 1, "ms": 0.005}
    assert found["ours: product"] == {"count": 1, "ms": 0.016}
    assert found["copy around attention"] == {"count": 1, "ms": 0.0}
    assert found["attention"] == {"count": 1, "ms": 0.007}
    assert found["gaps"]["ms"] == 0.009
    assert sum(row["ms"] for row in found.values()) == pytest.approx(0.047)


def test_kinds_of_kernels():
    assert kind_of("__myl_TranSlicSlicReshMulSlicReshMulReshMoveReshReshMoveMoveTran_0x1") == "copy around attention"
    assert kind_of("cudnn_generated_fort_native_sm90_matMul_pointwise_knob_23_128x128x32_10_0") == "matmul"
    assert kind_of("__myl_SiluGnor_0x1") == "norm"
    assert kind_of("__myl_AddReshAdd_0x1") == "other"
