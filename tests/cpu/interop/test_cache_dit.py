"""cache-dit's file has quantized layers alone: the other parameters come from a 16-bit checkpoint, or it is refused."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from svdq_trt.artifact import svdq_file
from svdq_trt.base.errors import UsageError
from svdq_trt.build.config import BuildConfig
from svdq_trt.build.work import plan_work
from svdq_trt.checkpoint import load
from svdq_trt.cli import main
from svdq_trt.contract.formats import W4A16
from svdq_trt.interop import w4a4
from svdq_trt.interop.layouts import NEW
from svdq_trt.interop.separate import separate
from svdq_trt.interop.w4a4 import Linear4, Rows
from svdq_trt.models import get_model
from tests.cpu.interop.test_lite import weights_of

SPEC = get_model("flux1-tiny")


@pytest.fixture(scope="module")
def folder(quantized, tmp_path_factory):
    """A folder as cache-dit writes it, of flux1-tiny's int4 linears, and the 16-bit model beside it."""
    folder = tmp_path_factory.mktemp("cache-dit")
    parts = separate(svdq_file.load(quantized(SPEC.name, "int4")), SPEC, unsigned=False)
    tensors: dict[str, torch.Tensor] = {}
    names = [name for name, weights in parts.linears.items() if weights.format is not W4A16]
    for name in names:
        weights = parts.linears[name]
        tensors |= w4a4.write(name, Linear4(weights, {}), NEW, Rows.of((weights.n,)), True).tensors
    said = {"format": "cache_dit_svdq_ptq", "version": 2, "precision": "int4", "quantized_layer_names": names}
    save_file(tensors, folder / "svdq_int4_r32_dq.safetensors", metadata={"cache_dit_svdq_ptq": json.dumps(said)})
    beside = {"format": "cache_dit_svdq_quant_config", "quant_type": "svdq_int4_r32_dq"}
    (folder / "quant_config.json").write_text(json.dumps(beside | {"checkpoint_path": "svdq_int4_r32_dq.safetensors"}))
    save_file(load(SPEC, random_seed=5).state_dict(), folder.parent / "16-bit.safetensors")
    return folder


def test_import_takes_the_rest_from_the_checkpoint(quantized, folder, tmp_path, capsys):
    line = ["import", str(folder), "--model", SPEC.name, "--out", str(tmp_path / "a.safetensors")]
    assert main(line) == UsageError.exit_code
    assert "quantized layers alone, want a 16-bit checkpoint for the others" in capsys.readouterr().err
    dense = folder.parent / "16-bit.safetensors"
    assert main([*line, "--checkpoint", str(dense)]) == 0
    assert "from cache-dit, int4 rank" in capsys.readouterr().out
    loaded, want = svdq_file.load(tmp_path / "a.safetensors"), weights_of(svdq_file.load(quantized(SPEC.name, "int4")))
    for name, got in weights_of(loaded).items():
        assert (got - want[name]).norm() < 2 * torch.finfo(torch.bfloat16).eps * want[name].norm(), name
    assert not any(node.act_unsigned for node in loaded.nodes)
    given = load(SPEC, random_seed=5).state_dict()
    nodes = {node.name for node in loaded.nodes}
    others = [name for name in given if name in loaded.tensors and name.rpartition(".")[0] not in nodes]
    assert "transformer_blocks.0.norm1.linear.weight" in others and "x_embedder.weight" in others
    assert all(torch.equal(loaded.tensors[name], given[name]) for name in others)


def test_build_asks_for_it_too(folder, tmp_path):
    config = {"model": SPEC.name, "archs": (89,), "out": tmp_path, "quantized": folder, "check": False}
    with pytest.raises(UsageError, match="has quantized layers alone, want 16-bit weights for the others"):
        plan_work(BuildConfig(**config))
    work = plan_work(BuildConfig(**config, checkpoint=str(folder.parent / "16-bit.safetensors")))
    assert work.import_needs_weights and work.weights.digest
