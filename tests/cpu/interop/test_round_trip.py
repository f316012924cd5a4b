"""Our artifact -> nunchaku -> artifact, and nunchaku -> artifact -> nunchaku."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from svdq_trt.artifact import svdq_file
from svdq_trt.contract.formats import Activation
from svdq_trt.contract.ops import CONSTANTS
from svdq_trt.interop import export_checkpoint, import_checkpoint
from svdq_trt.models import get_model
from svdq_trt.nn.restore import layer_of, restore_model

MODELS = ["sdxl-tiny", "flux1-tiny", "pixart-tiny"]
W4A4 = ("int4", "nvfp4")
TENSORS = [spec.name for spec in CONSTANTS]


def stored(path):
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def assert_same(a: dict, b: dict):
    assert sorted(a) == sorted(b)
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, name
        assert torch.equal(a[name].contiguous().view(torch.uint8), b[name].contiguous().view(torch.uint8)), name


def assert_same_node(before, after, old, node):
    """Equal bit for bit, description and tensors."""
    unknown = {"sqnr_db": 0, "alpha": 0, "beta": 0, "trials": ()}  # to the other format
    assert replace(node, **unknown) == replace(old, **unknown)
    names = [f"{node.name}.{t}" for t in TENSORS]
    assert_same({n: before.tensors[n] for n in names}, {n: after.tensors[n] for n in names})


@pytest.mark.parametrize("fmt", W4A4)
@pytest.mark.parametrize("model", MODELS)
def test_artifact_to_nunchaku_and_back(quantized, tmp_path, model, fmt):
    """Every node that nunchaku quantizes the same way comes back bit for bit, and the file once more from that."""
    source, spec = quantized(model, fmt), get_model(model)
    export_checkpoint(source, tmp_path / "n.safetensors", "nunchaku")
    report = import_checkpoint(tmp_path / "n.safetensors", spec, tmp_path / "back.safetensors")
    before, after = svdq_file.load(source), svdq_file.load(tmp_path / "back.safetensors")
    assert report.format == fmt and len(after.nodes) == report.nodes
    nodes = {n.name: n for n in after.nodes}
    for old in before.nodes:
        if old.format != "w4a16":
            assert_same_node(before, after, old, nodes[old.name])
        elif old.name in nodes:  # adaLN, rounded again: without smoothing and low-rank branch
            want, got = (layer_of(n, a.tensors).dequantize() for n, a in ((old, before), (nodes[old.name], after)))
            assert (got - want).norm() < 0.2 * want.norm()
        else:  # 16 bit at nunchaku
            want = layer_of(old, before.tensors).dequantize().to(spec.torch_dtype)
            got = torch.cat([after.tensors[f"{m}.weight"] for m in old.members])
            assert torch.equal(got, want)
    restore_model(after, spec)
    export_checkpoint(tmp_path / "back.safetensors", tmp_path / "again.safetensors", "nunchaku")
    (first, meta), (second, meta_again) = stored(tmp_path / "n.safetensors"), stored(tmp_path / "again.safetensors")
    assert_same(first, second)
    for strings in (meta, meta_again):  # what adaLN lost was lost the first time
        strings.pop("svdq_trt", None)
    assert meta == meta_again
    import_checkpoint(tmp_path / "again.safetensors", spec, tmp_path / "third.safetensors")
    assert_same(after.tensors, svdq_file.load(tmp_path / "third.safetensors").tensors)


@pytest.mark.parametrize("fmt", W4A4)
def test_many_ranks_leave_as_the_largest(quantized, tmp_path, fmt):
    """Nunchaku has one rank for a model: zeros follow a node's own factors, and nothing else changes."""
    source, spec = quantized("flux1-tiny", fmt, (32, 0, 16)), get_model("flux1-tiny")
    export_checkpoint(source, tmp_path / "n.safetensors", "nunchaku")
    tensors, meta = stored(tmp_path / "n.safetensors")
    down = [t for name, t in tensors.items() if name.endswith(".lora_down")]
    assert {t.shape[1] for t in down} == {32} and json.loads(meta["quantization_config"])["rank"] == 32
    import_checkpoint(tmp_path / "n.safetensors", spec, tmp_path / "back.safetensors")
    before, after = svdq_file.load(source), svdq_file.load(tmp_path / "back.safetensors")
    nodes = [n for n in before.nodes if n.format == fmt]
    assert {n.rank for n in nodes} == {0, 16, 32} and {n.rank for n in after.nodes if n.format == fmt} == {32}
    for node in nodes:
        back = {t: after.tensors[f"{node.name}.{t}"] for t in TENSORS}
        assert not back["lora_down"][node.rank :].any() and not back["lora_up"][:, node.rank :].any()
        back |= {"lora_down": back["lora_down"][: node.rank], "lora_up": back["lora_up"][:, : node.rank]}
        assert_same(back, {t: before.tensors[f"{node.name}.{t}"] for t in TENSORS})


@pytest.mark.parametrize(
    "model,signed,bare", [*((m, False, False) for m in MODELS), ("flux1-tiny", True, False), ("flux1-tiny", True, True)]
)
def test_outputs_are_those_of_the_model_it_was_packed_from(quantized, tmp_path, model, signed, bare):
    """As close as re-rounded adaLN and 16-bit K/V allow; signed codes stay signed unless our metadata are lost."""
    source, spec, path = quantized(model, "int4", signed=signed), get_model(model), tmp_path / "n.safetensors"
    export_checkpoint(source, path, "nunchaku")
    if bare:
        tensors, strings = stored(path)
        del strings["svdq_trt"]
        save_file(tensors, path, metadata=strings)
    notes = import_checkpoint(path, spec, tmp_path / "back.safetensors").notes
    loaded = svdq_file.load(tmp_path / "back.safetensors")
    unsigned = {n.name for n in svdq_file.load(source).nodes if n.act_unsigned}
    assert bool(unsigned) == (model != "sdxl-tiny" and not signed)
    behind_gelu = {g.node for g in spec.groups(spec.build()) if g.x_from is not Activation.NONE}
    assert {n.name for n in loaded.nodes if n.act_unsigned} == (behind_gelu if bare else unsigned)
    assert any("unsigned activation codes" in note for note in notes) == bool(bare or unsigned)
    inputs = spec.example_inputs(batch=1, height=64, width=64, seed=3)
    with torch.inference_mode():
        want, got = (spec.wrap(restore_model(a, spec))(*inputs).double() for a in (svdq_file.load(source), loaded))
    assert want.isfinite().all()
    assert 10 * torch.log10(want.square().sum() / (got - want).square().sum()) > 15
