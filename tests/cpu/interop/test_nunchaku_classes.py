"""What we write is loaded strictly by nunchaku's own classes, and means there what it means here."""

from __future__ import annotations

import pytest
import torch

from svdq_trt.artifact import svdq_file
from svdq_trt.interop import export_checkpoint
from svdq_trt.interop.layers import family_for, layers_of
from svdq_trt.models import get_model
from svdq_trt.nn.restore import layer_of
from tests.harness import nunchaku_peer as nunchaku
from tests.harness.packed import w4a4_weight


@pytest.mark.parametrize("fmt", ["int4", "nvfp4"])
@pytest.mark.parametrize("model", nunchaku.LOADERS)
def test_exports_load_strictly(quantized, tmp_path, model, fmt):
    spec, source, path = get_model(model), quantized(model, fmt), tmp_path / "n.safetensors"
    report = export_checkpoint(source, path, "nunchaku")
    theirs = nunchaku.load(model, path, fmt, spec.torch_dtype)
    loaded = svdq_file.load(source)
    nodes = {n.name: n for n in loaded.nodes if n.format == fmt}
    module = spec.build()
    groups = spec.groups(module)
    layers = layers_of(family_for(spec), module, groups)
    ours = {layer.new: g.node for layer in layers for g in groups if layer.serves(g)}
    linears = {name: m for name, m in theirs.named_modules() if type(m).__name__ == "SVDQW4A4Linear"}
    assert {ours[name] for name in linears} == set(nodes)
    for name, linear in linears.items():
        node = nodes[ours[name]]
        want, got = layer_of(node, loaded.tensors).dequantize().double(), w4a4_weight(linear)
        assert (got - want).norm() < 2 * torch.finfo(spec.torch_dtype).eps * want.norm(), name
        assert bool(linear.act_unsigned) == node.act_unsigned
    assert not [note for note in report.notes if "group scales" in note]
