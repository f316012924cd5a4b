"""export_onnx on a small network: names, files, determinism, and ONNX Runtime against torch."""

from __future__ import annotations

import onnx
import pytest
import torch
from torch import nn

from svdq_export import export_onnx
from svdq_export.twin import write_float32_twin
from svdq_export.write import write_model
from svdq_trt.base.errors import ArtifactError, UnsupportedError, UsageError
from svdq_trt.contract.formats import Activation
from tests.harness.export_toy import TOY_DYNAMIC, Toy, db, run_file, svdq, toy_inputs

LAYERS = (
    "time",
    "blocks.0.to_qkv",
    "blocks.0.to_out",
    "blocks.1.to_qkv",
    "blocks.1.to_out",
    "up",
    "down",
    "down#2",
    "ff1",
    "ff2",
)


def test_nodes_carry_module_paths_and_the_contract_attributes(exported):
    _, info, _ = exported
    assert sorted(info.svdq_nodes) == sorted(LAYERS)
    nodes = [n for n in onnx.load(info.path, load_external_data=False).graph.node if n.domain == "svdq"]
    assert [n.name for n in nodes] == list(info.svdq_nodes)
    down = next(n for n in nodes if n.name == "down")
    attributes = {a.name: onnx.helper.get_attribute_value(a) for a in down.attribute}
    assert attributes == {
        "group_size": 64,
        "act_unsigned": 1,
        "act_shift": 0.171875,
        "plugin_version": b"1",
        "plugin_namespace": b"svdq",
    }
    assert list(down.input)[1:] == [
        f"down.{n}" for n in ("qweight", "wscale", "act_mul", "lora_down", "lora_up", "bias", "wscale2")
    ]


def test_bodies_are_exactly_those_in_use(exported):
    _, info, _ = exported
    want = (
        "SVDQLinearInt4",
        "SVDQLinearNVFP4Silu",
        "SVDQLinearW4A16",
        "SVDQLinearW4A16Geglu",
        "SVDQLinearW4A8",
    )
    assert info.op_types == want
    assert tuple(f.name for f in onnx.load(info.path, load_external_data=False).functions) == want


def test_every_parameter_keeps_its_state_dict_name_type_and_bytes(exported):
    net, info, _ = exported
    stored = {i.name: onnx.numpy_helper.to_array(i) for i in onnx.load(info.path).graph.initializer}
    for name, tensor in net.state_dict().items():
        assert stored[name].dtype == tensor.numpy().dtype
        assert (stored[name] == tensor.numpy()).all()


def test_weights_lie_in_one_data_file_beside_and_nothing_else_is_left(exported):
    net, info, _ = exported
    assert sorted(p.name for p in info.path.parent.iterdir()) == ["toy.onnx", "toy.onnx.data"]
    large = [i for i in onnx.load(info.path, load_external_data=False).graph.initializer if i.external_data]
    assert {e.value for i in large for e in i.external_data if e.key == "location"} == {"toy.onnx.data"}
    assert info.data_bytes >= sum(t.nbytes for t in net.state_dict().values() if t.nbytes > 1024)


def test_batch_and_resolution_stay_dynamic(exported):
    net, info, _ = exported
    assert info.inputs["sample"] == ("float16", ("batch", 128, "height", "width"))
    assert info.outputs["out"] == ("float16", ("batch", 8, "height", "width"))
    for sizes in ((2, 8, 6), (1, 4, 12), (3, 10, 4)):
        inputs = toy_inputs(torch.float16, *sizes)
        want, got = net(**inputs).detach(), run_file(info.path, inputs)
        assert got.shape == want.shape
        assert db(want, got) > 50  # ten layers, each rounding to f16 in its own order; see f32 for the meaning


def test_f32_export_means_what_torch_means(tmp_path):
    net = Toy(torch.float32).eval()
    info = export_onnx(net, toy_inputs(torch.float32), TOY_DYNAMIC, ["out"], tmp_path / "toy.onnx")
    inputs = toy_inputs(torch.float32, 3, 4, 10)
    assert db(net(**inputs).detach(), run_file(info.path, inputs)) > 100


def test_progress_tells_stages_in_order(exported):
    _, _, stages = exported
    assert [s for i, (*_, s) in enumerate(stages) if i == 0 or stages[i - 1][-1] != s] == [
        "trace",
        "simplify",
        "write",
    ]
    assert stages[-1][0] == stages[-1][1] > 0


def test_second_export_gives_the_same_bytes_and_no_trace_of_this_machine(exported, tmp_path):
    _, info, _ = exported
    again = export_onnx(
        Toy(torch.float16).eval(), toy_inputs(torch.float16), TOY_DYNAMIC, ["out"], tmp_path / "toy.onnx"
    )
    for suffix in ("", ".data"):
        first, second = (p.with_name(p.name + suffix).read_bytes() for p in (info.path, again.path))
        assert first == second
    text = info.path.read_bytes()
    assert b".py" not in text and b"pkg.torch" not in text and str(tmp_path.parent).encode() not in text


def test_float32_twin_of_bf16_shares_the_data_and_follows_torch(tmp_path):
    net = Toy(torch.bfloat16).eval()
    info = export_onnx(net, toy_inputs(torch.bfloat16), TOY_DYNAMIC, ["out"], tmp_path / "toy.onnx")
    twin = write_float32_twin(info.path)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["toy.f32.onnx", "toy.onnx", "toy.onnx.data"]
    assert twin.stat().st_size < info.path.stat().st_size + 100_000
    inputs = toy_inputs(torch.bfloat16, 3, 4, 4)
    got = run_file(twin, {k: v.float() for k, v in inputs.items()})
    assert got.dtype == torch.float32
    assert db(net(**inputs).detach(), got) > 25  # bf16 rounding of activations flips a few 4-bit codes


def test_tied_and_equal_weights_keep_their_own_node_names(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.equal = (
                svdq("w4a16", 64, 64, 0, torch.float16),
                svdq("w4a16", 64, 64, 0, torch.float16),
            )
            self.tied = self.first

        def forward(self, x):
            return self.tied(self.equal(self.first(x)))

    path = tmp_path / "tied.onnx"
    info = export_onnx(Tied().eval(), {"x": torch.randn(2, 64).half()}, {"x": {0: "m"}}, ["y"], path)
    assert len(set(info.svdq_nodes)) == 3 and info.svdq_nodes[1] == "equal"
    names = {i.name for i in onnx.load(info.path, load_external_data=False).graph.initializer}
    assert {"equal.qweight", "equal.bias"} <= names  # though another layer holds the same values


def test_plain_f16_model_has_no_svdq_parts_and_mixed_concat_gets_its_cast(tmp_path):
    class Mixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(48, 8).half()

        def forward(self, a, b):
            return self.linear(torch.cat([a, b], dim=-1).half())

    path = tmp_path / "mixed.onnx"
    inputs = {"a": torch.randn(2, 16).half(), "b": torch.randn(2, 32)}
    net = Mixed().eval()
    info = export_onnx(net, inputs, {"a": {0: "m"}, "b": {0: "m"}}, ["y"], path)
    model = onnx.load(path, load_external_data=False)
    assert info.svdq_nodes == info.op_types == () and not model.functions
    assert [o.domain for o in model.opset_import] == [""] and model.opset_import[0].version == 23
    concat = next(n for n in model.graph.node if n.op_type == "Concat")
    cast = {o: n for n in model.graph.node for o in n.output if n.op_type == "Cast"}[concat.input[0]]
    assert cast.attribute[0].i == onnx.TensorProto.FLOAT and cast.input[0] == "a"
    assert db(net(**inputs).detach(), run_file(path, inputs)) > 60


def test_squeeze_becomes_reshape_and_gather(tmp_path):
    class Squeezing(nn.Module):
        def forward(self, x):
            return x.squeeze(2) * x.shape[0] + x.squeeze(1)[:, :, 0]

    x = torch.randn(3, 1, 1, 5)
    info = export_onnx(Squeezing(), {"x": x}, {"x": {0: "b", 3: "n"}}, ["y"], tmp_path / "s.onnx")
    ops = {n.op_type for n in onnx.load(info.path).graph.node}
    assert "Squeeze" not in ops and {"Reshape", "Gather"} <= ops
    x = torch.randn(4, 1, 1, 7)
    torch.testing.assert_close(run_file(info.path, {"x": x}), Squeezing()(x))


def test_squeeze_of_a_dimension_that_is_not_one_does_nothing(tmp_path):
    class Squeezing(nn.Module):
        def forward(self, x):
            return (x * 2).squeeze(1).flatten(1)

    x = torch.randn(3, 4, 5)
    info = export_onnx(Squeezing(), {"x": x}, {"x": {0: "b", 1: "n"}}, ["y"], tmp_path / "s.onnx")
    assert "Squeeze" not in {n.op_type for n in onnx.load(info.path).graph.node}
    x = torch.randn(2, 6, 5)
    torch.testing.assert_close(run_file(info.path, {"x": x}), Squeezing()(x))


def test_einsum_that_only_reorders_is_a_transpose(tmp_path):
    class Reordering(nn.Module):
        def forward(self, x):
            return torch.einsum("nhwpqc->nchpwq", x), torch.einsum("nhwpqc->nhw", x)

    x = torch.randn(2, 3, 4, 2, 2, 5)
    info = export_onnx(Reordering(), {"x": x}, {"x": {0: "b"}}, ["y", "z"], tmp_path / "e.onnx")
    model = onnx.load(info.path)
    onnx.checker.check_model(model, full_check=True)
    einsums = [n for n in model.graph.node if n.op_type == "Einsum"]
    assert all(n.attribute[0].s != b"nhwpqc->nchpwq" for n in einsums)
    x = torch.randn(3, 3, 4, 2, 2, 5)
    got = run_file(info.path, {"x": x})
    torch.testing.assert_close(got, Reordering()(x)[0])


@pytest.mark.parametrize("shape", [("b", 1, 1, "n"), (1, "n")], ids=["by image", "for all"])
@pytest.mark.parametrize("dtype", [torch.bool, torch.float32])
def test_a_mask_of_one_row_is_that_of_every_query(tmp_path, shape, dtype):
    """ONNX broadcasts it, ONNX Runtime's Attention does not."""

    class Masked(nn.Module):
        def forward(self, q, kv, mask):
            return nn.functional.scaled_dot_product_attention(q, kv, kv, mask)

    def inputs(b, rows, n):
        mask = torch.randn([{"b": b, "n": n}.get(size, size) for size in shape])
        mask = mask > -1 if dtype == torch.bool else mask
        return {"q": torch.randn(b, 2, rows, 8), "kv": torch.randn(b, 2, n, 8), "mask": mask}

    dynamic = {"q": {0: "b", 2: "rows"}, "kv": {0: "b", 2: "n"}}
    dynamic["mask"] = {axis: size for axis, size in enumerate(shape) if isinstance(size, str)}
    path = tmp_path / "m.onnx"
    export_onnx(Masked(), inputs(3, 5, 7), dynamic, ["y"], path)
    onnx.checker.check_model(onnx.load(path), full_check=True)
    given = inputs(2, 6, 9)
    torch.testing.assert_close(run_file(path, given), Masked()(**given))


def test_a_failed_write_leaves_the_old_file(exported, tmp_path, monkeypatch):
    import onnx_ir as ir

    _, info, _ = exported
    model = ir.load(info.path)
    path = tmp_path / "m.onnx"
    write_model(model, path)
    before = path.read_bytes()
    model.graph.outputs[0].name = "nowhere"
    next(iter(model.graph)).domain = "unknown"
    with pytest.raises(ArtifactError, match=r"m\.onnx: onnx\.checker says"):
        write_model(model, path)
    assert path.read_bytes() == before and sorted(p.name for p in tmp_path.iterdir()) == [
        "m.onnx",
        "m.onnx.data",
    ]


class Unread(nn.Module):
    """Two layers, and one whose output goes nowhere: a last block's text branch."""

    def __init__(self, last: nn.Module) -> None:
        super().__init__()
        self.model = nn.ModuleDict({"first": svdq("w4a16", 64, 64, 0, torch.float16), "last": last})

    def forward(self, x):
        y = self.model["first"](x)
        self.model["last"](y)
        return y


def test_a_layer_on_which_no_output_depends_is_refused(tmp_path):
    """The graph lacks it, so what lists it as quantized would not be true of the engine."""
    x, shapes = {"x": torch.randn(2, 64).half()}, {"x": {0: "m"}}
    net = Unread(svdq("int4", 64, 64, 16, torch.float16)).eval()
    with pytest.raises(UnsupportedError, match=r"layer 'last': no output depends on it"):
        export_onnx(net, x, shapes, ["y"], tmp_path / "a.onnx", wrapped="model")
    assert not list(tmp_path.iterdir())


def test_a_runtime_input_on_which_no_output_depends_is_refused(tmp_path):
    """A LoRA slot of such a layer would have no input to fill."""
    x, shapes = {"x": torch.randn(2, 64).half()}, {"x": {0: "m"}}
    net = Unread(nn.Linear(64, 64).half()).eval()
    with pytest.raises(UnsupportedError, match=r"layer 'last': no output depends on it"):
        export_onnx(net, x, shapes, ["y"], tmp_path / "a.onnx", wrapped="model", runtime_inputs=["last.weight"])


def test_wrong_arguments_say_what_is_wanted(tmp_path):
    net = svdq("w4a16", 64, 64, 0, torch.float16, Activation.SILU)
    x = torch.randn(2, 64).half()
    with pytest.raises(UsageError, match="dynamic_shapes: 'z', want one of x"):
        export_onnx(net, {"x": x}, {"z": {0: "m"}}, ["y"], tmp_path / "a.onnx")
    with pytest.raises(ArtifactError, match=r"suffix '\.pb', want \.onnx"):
        export_onnx(net, {"x": x}, {"x": {0: "m"}}, ["y"], tmp_path / "a.pb")
