"""Files by cache-dit's and ModelOpt's own code: read by value, and the models that they make."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from svdq_trt.artifact import svdq_file
from svdq_trt.base.errors import ArtifactError, UsageError
from svdq_trt.checkpoint import load
from svdq_trt.checkpoint.load import open_weights
from svdq_trt.cli import main
from svdq_trt.contract.numerics import e2m1_values, unpack_nibbles
from svdq_trt.interop import import_checkpoint
from svdq_trt.models import get_model
from svdq_trt.nn.restore import restore_model
from tests.cpu.interop.test_lite import weights_of
from tests.harness import maker_peers as peers
from tests.harness.packed import w4a4_weight

MODELS = ["flux1-tiny", "sdxl-tiny"]


def snr_of_outputs(spec, loaded, weights) -> float:
    """dB: the imported model against the diffusers model with `weights` [N, K] in 16 bit."""
    module = load(spec, random_seed=peers.SEED)
    for name, weight in weights.items():
        module.get_submodule(name).weight.data = weight.to(spec.torch_dtype)
    inputs = spec.example_inputs(batch=1, height=64, width=64, seed=5)
    with torch.inference_mode():
        got = spec.wrap(restore_model(loaded, spec))(*inputs).double()
        want = spec.wrap(module)(*inputs).double()
    return float(10 * torch.log10(want.square().sum() / (got - want).square().sum()))


@pytest.mark.parametrize("fmt", ["int4", "nvfp4"])
@pytest.mark.parametrize("model", MODELS)
def test_cache_dit(tmp_path, model, fmt):
    pytest.importorskip("cache_dit", reason="cache-dit is not installed")
    spec, folder = get_model(model), tmp_path / "theirs"
    folder.mkdir()
    theirs = peers.cache_dit(spec, f"svdq_{fmt}_r32_dq", folder)
    out = tmp_path / "a.safetensors"
    with pytest.raises(UsageError, match="quantized layers alone, want a 16-bit checkpoint"):
        import_checkpoint(folder, spec, out)
    report = import_checkpoint(folder, spec, out, open_weights(spec, random_seed=peers.SEED))
    loaded = svdq_file.load(out)
    most = max(len(node.members) for node in loaded.nodes)  # members of a node have a branch of rank 32 each
    assert (report.kind, report.format, report.rank) == ("cache-dit", fmt, 32 * most) and most > 1
    assert any("as its linears have a low-rank branch each" in note for note in report.notes)
    want = {name: w4a4_weight(m) for name, m in theirs.named_modules() if type(m).__name__ == "SVDQW4A4Linear"}
    for name, got in weights_of(loaded).items():
        assert (got - want[name]).norm() < 4 * torch.finfo(spec.torch_dtype).eps * want[name].norm(), name
        if name not in report.kept:
            original = load(spec, random_seed=peers.SEED).get_submodule(name).weight.double()
            assert (got - original).norm() < 0.2 * original.norm(), name
    assert snr_of_outputs(spec, loaded, want) > 15


def test_cache_dits_other_versions_and_broken_folders_are_refused(tmp_path):
    said = {"version": 3, "quantized_layer_names": []}
    save_file(
        {"a.wscales": torch.zeros(2)}, tmp_path / "x.safetensors", metadata={"cache_dit_svdq_ptq": json.dumps(said)}
    )
    spec = get_model("flux1-tiny")
    with pytest.raises(ArtifactError, match="version 3, want 2"):
        import_checkpoint(tmp_path / "x.safetensors", spec, tmp_path / "a.safetensors")
    for name in ("y.safetensors", "../x.safetensors", None):
        (tmp_path / "quant_config.json").write_text(json.dumps({"checkpoint_path": name}))
        with pytest.raises(ArtifactError, match="a file in the same folder"):
            import_checkpoint(tmp_path, spec, tmp_path / "a.safetensors")


def modelopts_weight(tensors, name) -> torch.Tensor:
    """[N, K] f64: what its export means, W = (Q · scales + b · a) · diag(pre_quant_scale)."""
    values = e2m1_values(unpack_nibbles(tensors[f"{name}.weight"].view(torch.int8))).double()
    scale = tensors[f"{name}.weight_scale"].double() * tensors[f"{name}.weight_scale_2"].double()
    weight = values * scale.repeat_interleave(16, 1)
    if f"{name}.svdquant_lora_a" in tensors:
        weight = weight + tensors[f"{name}.svdquant_lora_b"].double() @ tensors[f"{name}.svdquant_lora_a"].double()
    if f"{name}.pre_quant_scale" in tensors:
        weight = weight * tensors[f"{name}.pre_quant_scale"].double()
    return weight


@pytest.mark.parametrize("plain", [[], ["*ff.net.2*"]], ids=["all-svd", "mixed"])
@pytest.mark.parametrize("model", MODELS)
def test_modelopt(tmp_path, model, plain):
    pytest.importorskip("modelopt", reason="ModelOpt is not installed")
    spec, folder = get_model(model), tmp_path / "theirs"
    peers.modelopt(spec, folder, 16, plain)
    assert main(["import", str(folder), "--model", model, "--out", str(tmp_path / "a.safetensors")]) == 0
    loaded = svdq_file.load(tmp_path / "a.safetensors")
    tensors = load_file(folder / "diffusion_pytorch_model.safetensors")
    names = {n.removesuffix(".weight_scale") for n in tensors if n.endswith(".weight_scale")}
    want = {name: modelopts_weight(tensors, name) for name in names}
    for name, got in weights_of(loaded).items():
        assert (got - want[name]).norm() < 4 * torch.finfo(spec.torch_dtype).eps * want[name].norm(), name
    fused = [n for n in loaded.nodes if len(n.members) == 3]
    assert bool(fused) == (model == "flux1-tiny")  # it does not fuse SDXL's
    assert {n.rank for n in loaded.nodes} <= {0, 16}  # q, k and v share lora_a: the rank stays
    if plain and model == "sdxl-tiny":
        assert {n.rank for n in loaded.nodes if n.name.endswith("ff.net.2")} == {0}
    assert snr_of_outputs(spec, loaded, want) > 15
