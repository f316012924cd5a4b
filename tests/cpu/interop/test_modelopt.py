"""ModelOpt's NVFP4_SVD export: made here as its code makes it, then imported and compared by value."""

from __future__ import annotations

import functools
import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from svdq_trt.artifact import svdq_file
from svdq_trt.base.errors import ArtifactError, RangeError, ShapeError, SvdqError, UnsupportedError
from svdq_trt.checkpoint import load
from svdq_trt.contract.numerics import E4M3, e2m1_codes, e2m1_values, round_e2m1
from svdq_trt.interop import describe, import_checkpoint
from svdq_trt.models import get_model
from svdq_trt.nn.restore import layer_of, restore_model

RANK = 8  # padded to 16
QUANTIZATION = {
    "quant_method": "modelopt",
    "quant_algo": "NVFP4_SVD",
    "ignore": [],
    "config_groups": {
        "group_0": {
            "weights": {"num_bits": 4, "type": "float", "group_size": 16},
            "pre_quant_scale": True,
            "lora_rank": RANK,
        }
    },
}


def quantize(name: str, w: torch.Tensor, scale: torch.Tensor | None, dtype) -> tuple[dict, torch.Tensor]:
    """(tensors of one layer, the weight they mean [N, K] f64)."""
    smoothed = w.float() if scale is None else w.float() / scale.float()
    t = {f"{name}.input_scale": torch.tensor(0.01)}
    low = torch.zeros_like(smoothed).double()
    if scale is not None:
        u, s, v = torch.linalg.svd(smoothed)
        b, a = (u[:, :RANK] * s[:RANK]).to(dtype), v[:RANK].to(dtype)
        low = b.double() @ a.double()
        smoothed = smoothed - low.float()
        t |= {f"{name}.pre_quant_scale": scale.clone(), f"{name}.svdquant_lora_a": a, f"{name}.svdquant_lora_b": b}
    n, k = w.shape
    whole = smoothed.abs().max() / (6 * 448)
    blocks = smoothed.view(n, k // 16, 16)
    fine = (blocks.abs().amax(-1) / 6 / whole).clamp(2**-9, 448).to(E4M3)
    values = round_e2m1(blocks / (fine.float() * whole)[..., None])
    codes = e2m1_codes(values).view(n, k)
    t |= {
        f"{name}.weight": (codes[:, 1::2] << 4) | codes[:, 0::2],
        f"{name}.weight_scale": fine,
        f"{name}.weight_scale_2": whole,
    }
    means = (e2m1_values(codes).view(n, k // 16, 16).double() * fine.double()[..., None]).view(n, k) * whole.double()
    return t, (means + low) * (1.0 if scale is None else scale.double())


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """(model, shared) -> folder and what each quantized layer means; `shared`: q, k and v share their smoothing."""

    @functools.cache
    def make(model: str, shared: bool, plain: str = "\0"):
        spec = get_model(model)
        module = load(spec, random_seed=3)
        g = torch.Generator().manual_seed(0)
        tensors, meaning = {k: v.clone() for k, v in module.state_dict().items()}, {}
        for group in spec.groups(module):
            scales = None
            for name in group.members:
                if name in meaning or "norm" in name or "attn2.to_k" in name:  # a split linear; layers left 16 bit
                    continue
                layer = module.get_submodule(name)
                assert isinstance(layer, nn.Linear)
                if scales is None or not shared:
                    scales = torch.exp(torch.randn(layer.in_features, generator=g)).to(spec.torch_dtype)
                del tensors[f"{name}.weight"]
                own, meaning[name] = quantize(name, layer.weight, None if plain in name else scales, spec.torch_dtype)
                tensors |= own
        folder = tmp_path_factory.mktemp("modelopt")
        save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "diffusion_pytorch_model.safetensors")
        config = {"_class_name": spec.model_class().__name__, **spec.config, "quantization_config": QUANTIZATION}
        (folder / "config.json").write_text(json.dumps(config))
        return folder, meaning

    return make


@pytest.mark.parametrize("shared", [True, False], ids=["shared", "each-its-own"])
@pytest.mark.parametrize("model", ["sdxl-tiny", "flux1-tiny"])
def test_import_by_value(export, tmp_path, model, shared):
    spec, (folder, meaning) = get_model(model), export(model, shared)
    assert describe(folder, spec).format == "nvfp4"
    report = import_checkpoint(folder, spec, tmp_path / "a.safetensors")
    loaded = svdq_file.load(tmp_path / "a.safetensors")
    assert report.nodes == len(loaded.nodes) and {n.format for n in loaded.nodes} == {"nvfp4"}
    seen: dict[str, list[torch.Tensor]] = {}
    for node in loaded.nodes:
        assert node.act_unsigned is False and node.rank % 16 == 0
        rows = layer_of(node, loaded.tensors).dequantize().split(list(node.member_rows))
        for member, part in zip(node.members, rows, strict=True):
            seen.setdefault(member, []).append(part)
    for member, parts in seen.items():  # a linear that is split by columns comes in two
        got, want = torch.cat(parts, 1).double(), meaning[member]
        assert (got - want).norm() < 2 * torch.finfo(spec.torch_dtype).eps * want.norm(), member
    assert set(seen) == set(meaning)
    restore_model(loaded, spec)
    fused = [n for n in loaded.nodes if len(n.members) == 3]
    assert bool(fused) == shared
    if not shared:
        assert any(n.name.endswith("to_q") for n in loaded.nodes)
        inputs = spec.example_inputs(batch=1, height=64, width=64, seed=1)
        with torch.inference_mode():
            assert spec.wrap(restore_model(loaded, spec))(*inputs).isfinite().all()


def test_layers_without_svdquant_are_plain_nvfp4(export, tmp_path):
    spec, (folder, meaning) = get_model("sdxl-tiny"), export("sdxl-tiny", True, plain="ff.net.2")
    import_checkpoint(folder, spec, tmp_path / "a.safetensors")
    loaded = svdq_file.load(tmp_path / "a.safetensors")
    nodes = [n for n in loaded.nodes if n.name.endswith("ff.net.2")]
    assert nodes and all(n.rank == 0 for n in nodes)
    got = layer_of(nodes[0], loaded.tensors).dequantize().double()
    assert torch.allclose(got, meaning[nodes[0].name], rtol=1e-6, atol=1e-9)


def test_activations_are_centred_by_a_power_of_two(export, tmp_path):
    """input_scale 0.01: absmax 26.88, group scale 4.48, up to 112 by 2^4; the weight's value stays."""
    spec, (folder, _) = get_model("sdxl-tiny"), export("sdxl-tiny", True, plain="ff.net.2")
    import_checkpoint(folder, spec, tmp_path / "a.safetensors")
    loaded = svdq_file.load(tmp_path / "a.safetensors")
    node = next(n for n in loaded.nodes if n.name.endswith("ff.net.2"))
    assert bool((loaded.tensors[f"{node.name}.act_mul"] == 16).all())


def changed(folder, to, edit):
    """A copy of the export with other tensors."""
    shutil.copytree(folder, to)
    file = to / "diffusion_pytorch_model.safetensors"
    tensors = load_file(file)
    edit(tensors)
    save_file(tensors, file)
    return to


NAME = "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.2"


@pytest.mark.parametrize(
    "kind,text,edit",
    [
        (ArtifactError, "dtype I8", lambda t: t.update({f"{NAME}.weight": t[f"{NAME}.weight"].view(torch.int8)})),
        (ShapeError, "shape", lambda t: t.update({f"{NAME}.weight_scale": t[f"{NAME}.weight_scale"].T.contiguous()})),
        (RangeError, "NaN", lambda t: t[f"{NAME}.weight_scale"].view(torch.uint8)[0, 0:1].fill_(0x7F)),
        (RangeError, "0 or below", lambda t: t[f"{NAME}.pre_quant_scale"][3:4].zero_()),
        (ArtifactError, "NaN or Inf", lambda t: t[f"{NAME}.weight_scale_2"].fill_(float("inf"))),
        (ArtifactError, "no tensor", lambda t: t.pop(f"{NAME}.svdquant_lora_b")),
        (
            ShapeError,
            "shape",
            lambda t: t.update({f"{NAME}.svdquant_lora_a": t[f"{NAME}.svdquant_lora_a"][:4].clone()}),
        ),
        (ShapeError, "no place for", lambda t: t.update({"extra.weight": torch.zeros(2)})),
        (RangeError, "positive scale", lambda t: t[f"{NAME}.input_scale"].fill_(0)),
    ],
)
def test_broken_exports_are_refused(export, tmp_path, kind, text, edit):
    folder, _ = export("sdxl-tiny", True)
    folder = changed(folder, tmp_path / "changed", edit)
    with pytest.raises(kind, match=text) as caught:
        import_checkpoint(folder, get_model("sdxl-tiny"), tmp_path / "a.safetensors")
    assert isinstance(caught.value, SvdqError) and not (tmp_path / "a.safetensors").exists()


def test_exports_prepared_for_another_runtime_are_refused(export, tmp_path):
    """Their scales may be swizzled: right shapes, other order."""
    folder = changed(export("sdxl-tiny", True)[0], tmp_path / "changed", lambda t: None)
    file = folder / "diffusion_pytorch_model.safetensors"
    save_file(load_file(file), file, metadata={"quantization_config": json.dumps(QUANTIZATION)})
    with pytest.raises(UnsupportedError, match="another runtime"):
        import_checkpoint(folder, get_model("sdxl-tiny"), tmp_path / "a.safetensors")


@pytest.mark.parametrize(
    "kind,text,quantization",
    [
        (UnsupportedError, "NVFP4_AWQ", {"quant_algo": "NVFP4_AWQ"}),
        (ArtifactError, "JSON list", []),
        (
            UnsupportedError,
            "group_size 32",
            {"quant_algo": "NVFP4_SVD", "config_groups": {"group_0": {"weights": {"group_size": 32}}}},
        ),
        (ArtifactError, "lora_rank", {"quant_algo": "NVFP4_SVD", "config_groups": {"group_0": {"lora_rank": "8"}}}),
    ],
)
def test_other_algorithms_are_refused(export, tmp_path, kind, text, quantization):
    folder = changed(export("sdxl-tiny", True)[0], tmp_path / "changed", lambda t: None)
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.raises(kind, match=text):
        import_checkpoint(folder, get_model("sdxl-tiny"), tmp_path / "a.safetensors")
