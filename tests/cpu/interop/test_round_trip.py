"""Our artifact -> nunchaku -> artifact, and nunchaku -> artifact -> nunchaku."""

from __future__ import annotations

import pytest
import torch
from safetensors import safe_open

from svdq_trt.interop import export_nunchaku, import_checkpoint
from svdq_trt.models import get_model
from svdq_trt.quantize import artifact
from svdq_trt.quantize.run import restore_model

MODELS = ["sdxl-tiny"]
W4A4 = ("int4", "nvfp4")


def stored(path):
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118


def assert_same(a: dict, b: dict):
    assert sorted(a) == sorted(b)
    for name in a:
        assert a[name].dtype == b[name].dtype and a[name].shape == b[name].shape, name
        assert torch.equal(a[name].contiguous().view(torch.uint8), b[name].contiguous().view(torch.uint8)), name


@pytest.mark.parametrize("old_keys", [True, False])
@pytest.mark.parametrize("fmt", W4A4)
@pytest.mark.parametrize("model", MODELS)
def test_artifact_to_nunchaku_and_back(quantized, tmp_path, model, fmt, old_keys):
    """Every node that nunchaku quantizes comes back bit for bit, and the file once more from that."""
    source, spec = quantized(model, fmt), get_model(model)
    export_nunchaku(source, tmp_path / "n.safetensors", old_keys)
    report = import_checkpoint(tmp_path / "n.safetensors", spec, tmp_path / "back.safetensors")
    before, after = artifact.load(source), artifact.load(tmp_path / "back.safetensors")
    assert report.format == fmt and len(after.nodes) == report.nodes
    theirs = {n.name: n for n in before.nodes}
    for node in after.nodes:
        old = theirs.pop(node.name)
        assert (node.members, node.member_rows, node.format, node.activation) == (
            old.members, old.member_rows, old.format, old.activation)  # fmt: skip
        assert (node.rank, node.act_unsigned, node.act_shift) == (old.rank, old.act_unsigned, old.act_shift)
        names = [f"{node.name}.{t}" for t in ("qweight", "wscale", "act_mul", "lora_down", "lora_up", "bias", "wscale2")]
        assert_same({n: before.tensors[n] for n in names}, {n: after.tensors[n] for n in names})
    assert all(n.format == "w4a16" for n in theirs.values())  # nunchaku keeps these in 16 bit
    restore_model(after, spec)
    export_nunchaku(tmp_path / "back.safetensors", tmp_path / "again.safetensors", old_keys)
    (first, meta), (second, meta_again) = stored(tmp_path / "n.safetensors"), stored(tmp_path / "again.safetensors")
    assert_same(first, second)
    assert meta == meta_again
