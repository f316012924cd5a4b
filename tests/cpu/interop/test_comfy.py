"""comfy-kitchen's layouts: packed, unpacked and multiplied by its own code (eager, on the CPU)."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from svdq_trt.artifact import svdq_file
from svdq_trt.base.errors import ArtifactError, ShapeError, SvdqError, UnsupportedError
from svdq_trt.cli import main
from svdq_trt.interop import describe, export_checkpoint, import_checkpoint
from svdq_trt.interop.convert import Description
from svdq_trt.models import get_model
from svdq_trt.nn.restore import layer_of, restore_model
from tests.cpu.interop.test_lite import weights_of
from tests.cpu.interop.test_round_trip import assert_same, assert_same_node

MODELS = ["flux1-tiny", "sdxl-tiny", "pixart-tiny", "sd3-tiny"]


def stored(path):
    with safe_open(path, framework="pt") as file:
        return load_file(path), file.metadata()


def layers(path) -> dict[str, dict]:
    """What each quantized layer says of itself."""
    tensors, metadata = stored(path)
    said = {n.removesuffix(".comfy_quant"): json.loads(bytes(t.tolist())) for n, t in tensors.items() if "comfy_" in n}
    assert json.loads(metadata["_quantization_metadata"]) == {"format_version": "1.0", "layers": said}
    return said


@pytest.mark.parametrize("model", MODELS)
def test_there_and_back(quantized, tmp_path, model):
    spec, source, file = get_model(model), quantized(model, "int4"), tmp_path / "k.safetensors"
    export_checkpoint(source, file, "comfy-kitchen")
    assert describe(file, spec) == Description("comfy-kitchen", "int4")
    report = import_checkpoint(file, spec, tmp_path / "back.safetensors")
    before, after = svdq_file.load(source), svdq_file.load(tmp_path / "back.safetensors")
    nodes = {n.name: n for n in after.nodes}
    assert report.nodes == len(before.nodes) == len(nodes)
    for old in before.nodes:
        if old.format == "int4":
            assert_same_node(before, after, old, nodes[old.name])
    restore_model(after, spec)
    export_checkpoint(tmp_path / "back.safetensors", tmp_path / "again.safetensors", "comfy-kitchen")
    (first, said), (second, said_again) = stored(file), stored(tmp_path / "again.safetensors")
    assert_same(first, second)
    assert said == said_again


def kitchen_tensor(ck, name, tensors, said, dtype):
    """The layer as comfy-kitchen's QuantizedTensor."""
    n, k = tensors[f"{name}.weight_scale"].shape[-1], tensors[f"{name}.smooth_factor"].shape[0]
    n = tensors[f"{name}.weight"].shape[0] * 128 if tensors[f"{name}.weight"].ndim == 4 else n
    layout = ck.tensor.TensorCoreSVDQuantW4A4Layout
    params = layout.Params(
        scale=tensors[f"{name}.weight_scale"],
        orig_dtype=dtype,
        orig_shape=(n, k),
        proj_down=tensors[f"{name}.proj_down"],
        proj_up=tensors[f"{name}.proj_up"],
        smooth_factor=tensors[f"{name}.smooth_factor"],
        act_unsigned=said.get("act_unsigned", False),
    )
    return ck.tensor.QuantizedTensor(tensors[f"{name}.weight"], "TensorCoreSVDQuantW4A4Layout", params)


@pytest.mark.parametrize("model", ["flux1-tiny", "pixart-tiny"])
def test_kitchen_computes_with_what_we_write(quantized, tmp_path, model):
    """Its linear, eager, against ours on the same inputs: the same codes but for rounding of scales."""
    ck = pytest.importorskip("comfy_kitchen", reason="comfy-kitchen is not installed")
    spec, source, file = get_model(model), quantized(model, "int4"), tmp_path / "k.safetensors"
    export_checkpoint(source, file, "comfy-kitchen")
    loaded = svdq_file.load(source)
    tensors, said, want = load_file(file), layers(file), weights_of(loaded)
    unsigned = {n.name: n for n in loaded.nodes if n.act_unsigned and len(n.members) == 1 and n.name in said}
    assert unsigned
    for name, node in unsigned.items():
        assert said[name]["act_unsigned"] is True
        theirs = kitchen_tensor(ck, name, tensors, said[name], spec.torch_dtype)
        x = torch.nn.functional.gelu(torch.randn(64, node.k, generator=torch.Generator().manual_seed(0)))
        x = x.to(spec.torch_dtype)
        got = torch.nn.functional.linear(x, theirs, tensors[f"{name}.bias"]).double()
        ours = layer_of(node, loaded.tensors)(x).double()
        assert (got - ours).norm() < 0.02 * ours.norm(), name
    checked = 0
    for name, expected in want.items():
        if said.get(name, {}).get("format") == "awq_w4a16":
            params = ck.tensor.TensorCoreAWQW4A16Layout.Params(
                scale=tensors[f"{name}.weight_scale"].float(),
                orig_dtype=torch.float32,
                orig_shape=tuple(expected.shape),
                zeros=tensors[f"{name}.weight_zero"].float(),
            )
            got = ck.tensor.TensorCoreAWQW4A16Layout.dequantize(tensors[f"{name}.weight"], params).double()
            assert (got - expected).norm() < 0.2 * expected.norm(), name
            checked += 1
    assert checked


def test_tiles_are_comfy_kitchens(quantized, tmp_path):
    """Its own functions make rows of our tiles, and these are our codes."""
    eager = pytest.importorskip("comfy_kitchen.backends.eager.svdquant", reason="comfy-kitchen is not installed")
    source, file = quantized("flux1-tiny", "int4"), tmp_path / "k.safetensors"
    export_checkpoint(source, file, "comfy-kitchen")
    loaded, tensors, name = svdq_file.load(source), load_file(file), "transformer_blocks.0.attn.to_out.0"
    for leaf, unpack, ours in (
        ("weight", eager._tile_packed_weight_to_row_major, "qweight"),
        ("weight_scale", eager._tile_packed_scales_to_natural, "wscale"),
        ("proj_up", eager._tile_packed_lora_up_to_natural, "lora_up"),
    ):
        assert torch.equal(unpack(tensors[f"{name}.{leaf}"]), loaded.tensors[f"{name}.{ours}"])


@pytest.fixture(scope="module")
def written(quantized, tmp_path_factory):
    """pixart-tiny in comfy-kitchen's layout, by the command: tensors and metadata."""
    file = tmp_path_factory.mktemp("comfy") / "k.safetensors"
    assert main(["to-comfy", str(quantized("pixart-tiny", "int4")), "--out", str(file)]) == 0
    return stored(file)


LAYER = "transformer_blocks.0.attn1.to_q"


def mark(tensors, name, **said):
    """Change what a layer says of itself; None takes a key away."""
    old = json.loads(bytes(tensors[f"{name}.comfy_quant"].tolist()))
    new = {key: value for key, value in (old | said).items() if value is not None}
    tensors[f"{name}.comfy_quant"] = torch.tensor(list(json.dumps(new).encode()), dtype=torch.uint8)


def natural(tensors):
    """Rows in the place of tiles, under comfy-kitchen's own names."""
    out = dict(tensors)
    for name in [n.removesuffix(".comfy_quant") for n in tensors if n.endswith(".comfy_quant")]:
        if f"{name}.weight_zero" in out:
            out[f"{name}.weight_zeros"] = out.pop(f"{name}.weight_zero")
            continue
        tiles, scale, up = (out.pop(f"{name}.{leaf}") for leaf in ("weight", "weight_scale", "proj_up"))
        (nt, kt), r = tiles.shape[:2], up.shape[1]
        out[f"{name}.weight"] = tiles.view(nt, kt, 32, 4, 32).permute(0, 2, 3, 1, 4).reshape(nt * 128, kt * 32)
        out[f"{name}.weight_scale"] = scale.transpose(0, 1).reshape(kt, nt * 128)
        out[f"{name}.weight_proj_up"] = up.transpose(1, 2).reshape(nt * 128, r)
        for leaf in ("smooth_factor", "proj_down"):
            out[f"{name}.weight_{leaf}"] = out.pop(f"{name}.{leaf}")
        mark(out, name, layout=None)
    return {name: t.contiguous() for name, t in out.items()}


def imported(tmp_path, tensors, metadata, name="a"):
    save_file(tensors, tmp_path / "k.safetensors", metadata=metadata)
    import_checkpoint(tmp_path / "k.safetensors", get_model("pixart-tiny"), tmp_path / f"{name}.safetensors")
    return svdq_file.load(tmp_path / f"{name}.safetensors")


def test_both_spellings_of_both_layouts_mean_the_same(written, tmp_path):
    tensors, metadata = written
    hints = {"svdq_trt": metadata["svdq_trt"]}
    tiles, rows = imported(tmp_path, tensors, hints), imported(tmp_path, natural(tensors), hints, "b")
    assert_same(tiles.tensors, rows.tensors)
    bare = {n: t for n, t in tensors.items() if not n.endswith(".comfy_quant")}
    assert_same(imported(tmp_path, bare, metadata, "c").tensors, tiles.tensors)


def test_low_rank_of_smoothed_inputs(written, tmp_path):
    """comfy-quants can leave the smoothing out of proj_down: the branch then reads x / smooth."""
    tensors, metadata = dict(written[0]), written[1]
    smooth = tensors[f"{LAYER}.smooth_factor"].float()
    tensors[f"{LAYER}.proj_down"] = (tensors[f"{LAYER}.proj_down"].float() * smooth[:, None]).to(torch.bfloat16)
    mark(tensors, LAYER, lowrank_branch_input_basis="post_smoothing", proj_down_smooth_folded=False)
    want, got = (weights_of(imported(tmp_path, t, metadata, n))[LAYER] for t, n in ((written[0], "a"), (tensors, "b")))
    assert 0 < (got - want).norm() < 0.01 * want.norm()


@pytest.mark.parametrize(
    "kind,text,edit",
    [
        (UnsupportedError, "format 'nvfp4'", lambda t, m: mark(t, LAYER, format="nvfp4")),
        (UnsupportedError, "layout 'blocks'", lambda t, m: mark(t, LAYER, layout="blocks")),
        (ArtifactError, "what comfy-kitchen knows", lambda t, m: mark(t, LAYER, act_unsigned=3)),
        (ArtifactError, "what comfy-kitchen knows", lambda t, m: mark(t, LAYER, lowrank_branch_input_basis="odd")),
        (ArtifactError, "not valid JSON", lambda t, m: t.update({f"{LAYER}.comfy_quant": torch.zeros(3).byte()})),
        (ArtifactError, "bytes of a JSON text", lambda t, m: t.update({f"{LAYER}.comfy_quant": torch.zeros(3, 2)})),
        (ShapeError, "shape", lambda t, m: t.update({f"{LAYER}.weight": t[f"{LAYER}.weight"][:, :1].clone()})),
        (ArtifactError, "no tensor", lambda t, m: t.pop(f"{LAYER}.proj_up")),
        (
            ArtifactError,
            "declared as a file of comfy-kitchen .* and nunchaku-lite",
            lambda t, m: m.update(runtime_manifest="{}"),
        ),
        (ArtifactError, "layers", lambda t, m: m.update(_quantization_metadata='{"layers": [1]}')),
    ],
)
def test_files_that_contradict_themselves_are_refused(written, tmp_path, kind, text, edit):
    tensors, metadata = dict(written[0]), dict(written[1])
    edit(tensors, metadata)
    with pytest.raises(kind, match=text) as caught:
        imported(tmp_path, tensors, metadata)
    assert isinstance(caught.value, SvdqError) and not (tmp_path / "a.safetensors").exists()


def test_layers_that_say_nothing_are_not_taken_for_modelopts(written, tmp_path):
    bare = {n: t for n, t in written[0].items() if not n.endswith(".comfy_quant")}
    with pytest.raises(ArtifactError, match="scales of weights, but nothing that says whose"):
        imported(tmp_path, bare, {})


def test_svdquant_is_int4_there(quantized, tmp_path):
    with pytest.raises(UnsupportedError, match="format nvfp4, want int4"):
        export_checkpoint(quantized("pixart-tiny", "nvfp4"), tmp_path / "k.safetensors", "comfy-kitchen")
