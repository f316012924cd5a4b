"""Files with nunchaku's names that are not nunchaku's: told by what they declare, and by the order of their codes."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from svdq_trt.base.errors import ShapeError, SvdqError, UnsupportedError
from svdq_trt.checkpoint.config_check import check_config
from svdq_trt.contract import numerics
from svdq_trt.contract.formats import INT4, NVFP4
from svdq_trt.contract.numerics import E4M3
from svdq_trt.interop import convert
from svdq_trt.interop.layouts import NEW
from svdq_trt.interop.order import Evidence, Order
from svdq_trt.interop.packing import FRAGMENTS, ROWS
from svdq_trt.interop.w4a4 import Rows
from svdq_trt.models import get_model
from svdq_trt.quantize.scales import importance, search_scales
from tests.cpu.interop.toy_flux import SPEC, checkpoint


def weight(case: int) -> torch.Tensor:
    """[N, K] of one of five distributions, in one of nine sizes."""
    g = torch.Generator().manual_seed(case)
    n, k = (128, 256, 384)[case % 3], (128, 256, 640)[case // 3 % 3]
    w, uniform = torch.randn(n, k, generator=g), torch.rand(n, k, generator=g)
    outliers = torch.where(torch.arange(k) % 31 == 0, 30.0, 1.0)
    tail = w / torch.randn(n, k, 3, generator=g).square().mean(-1).sqrt()
    return (w, uniform - 0.5, w.sign() * -uniform.clamp_min(1e-6).log(), tail, w * outliers)[case % 5]


def test_order_of_200_layers_is_never_mistaken():
    clear = 0
    for case in range(200):
        fmt, w = (INT4, NVFP4)[case % 2], weight(case)
        scales = numerics.weight_scales(w, fmt)
        if searched := case % 4 > 1:  # as our own presets do; others take the absolute maximum
            x = torch.rand(8, w.shape[1], generator=torch.Generator().manual_seed(case))
            scales = search_scales(w, importance(x), fmt, torch.float16)
        groups = numerics.grouped(w, fmt.weight_group)
        values = numerics.round_weight(groups, scales.step[..., None], fmt).flatten(1)
        plain = numerics.pack_weight(values, scales, fmt).qweight
        for stored, want in ((FRAGMENTS.codes.pack(plain), Order.FRAGMENTS), (plain, Order.ROWS)):
            evidence = Evidence()
            evidence.add(stored, fmt, Rows.of((len(w),)), w.shape[1])
            assert evidence.order in (want, Order.UNCLEAR), case
            assert evidence.order is want or searched or case % 5 == 1, case  # uniform weights show nothing
            clear += evidence.order is want
    assert clear > 220


def test_no_codes_say_nothing():
    evidence = Evidence()
    assert evidence.order is Order.UNCLEAR
    evidence.add(torch.zeros(128, 64, dtype=torch.int8), INT4, Rows.of((72,)), 128)
    assert evidence.order is Order.UNCLEAR


def in_rows(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The same layers with every tensor row-major, as vLLM-Omni has them."""

    def plain(name: str, t: torch.Tensor) -> torch.Tensor:
        owner, _, leaf = name.rpartition(".")
        if f"{owner}.wzeros" in tensors or f"{owner}.qweight" not in tensors:  # the same in both
            return t
        if leaf == "wscales" and t.dtype == E4M3:
            shape = (t.shape[0] // 4, t.shape[1], 4)
            return ROWS.micro.pack(FRAGMENTS.micro.unpack(t.view(torch.int8), shape)).view(E4M3)
        shapes = {"qweight": ("codes", t.shape), "wscales": ("scales", t.shape), "proj_up": ("up", t.shape)}
        kind, shape = shapes.get(leaf, ("channels", t.shape))
        if leaf == "proj_down":
            kind, shape = "down", (t.shape[1], t.shape[0])
        if leaf == "wtscale":
            return t
        return getattr(ROWS, kind).pack(getattr(FRAGMENTS, kind).unpack(t, shape))

    return {name: plain(name, t) for name, t in tensors.items()}


@pytest.mark.parametrize("declared", [False, True], ids=["undeclared", "with-nunchakus-header"])
@pytest.mark.parametrize("fp4", [False, True], ids=["int4", "fp4"])
def test_rows_under_nunchakus_names_are_refused(tmp_path, fp4, declared):
    tensors, metadata, _ = checkpoint(fp4, NEW, False)
    save_file(in_rows(tensors), tmp_path / "n.safetensors", metadata=metadata if declared else None)
    with pytest.raises(UnsupportedError, match="codes in rows"):
        convert.import_checkpoint(tmp_path / "n.safetensors", SPEC, tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


def test_codes_of_unclear_order_need_nunchakus_header(tmp_path):
    tensors, metadata, _ = checkpoint(True, NEW, False)
    g = torch.Generator().manual_seed(0)
    for name, t in tensors.items():
        if t.dtype == torch.int8:
            tensors[name] = torch.randint(-128, 128, t.shape, generator=g, dtype=torch.int8)
    file = tmp_path / "n.safetensors"
    save_file(tensors, file)
    with pytest.raises(UnsupportedError, match="no metadata, and codes that may lie in nunchaku's order or in rows"):
        convert.import_checkpoint(file, SPEC, tmp_path / "a.safetensors")
    save_file(tensors, file, metadata=metadata)
    with pytest.raises(ShapeError, match="only padding"):  # noise in there, too: so far it comes
        convert.import_checkpoint(file, SPEC, tmp_path / "a.safetensors")


OTHERS = {
    "vllm-omni": ("config.json", {"quantization_config": {"quant_method": "svdquant", "rank": 32}}, "vLLM-Omni"),
    "vllm-omni-file": ("quantization_config.json", {"rank": 32, "precision": "nvfp4"}, "does not name"),
    "lite": ("config.json", {"quantization_config": {"quant_method": "nunchaku_lite"}}, "Nunchaku Lite of diffusers"),
    "cache-dit": ("quant_config.json", {"format": "cache_dit_svdq_quant_config"}, "cache_dit_svdq_quant_config"),
    "unknown": ("config.json", {"quantization_config": {"quant_method": "sdnq"}}, "'sdnq'"),
    "modelopt": ("config.json", {"quantization_config": {"quant_algo": "NVFP4_SVD"}}, "NVFP4_SVD"),
    "no-object": ("config.json", {"quantization_config": [3]}, "a JSON list"),
}


@pytest.mark.parametrize("name,said,want", OTHERS.values(), ids=list(OTHERS))
@pytest.mark.parametrize("as_folder", [True, False], ids=["folder", "file"])
def test_what_a_file_beside_declares_is_refused_by_name(tmp_path, name, said, want, as_folder):
    """Whatever the codes look like: here they are nunchaku's own."""
    tensors, _, _ = checkpoint(True, NEW, False)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file(tensors, file)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text(json.dumps(said))
    for call in (convert.describe, lambda *args: convert.import_checkpoint(*args, tmp_path / "a.safetensors")):
        with pytest.raises(SvdqError, match=want):
            call(tmp_path if as_folder else file, SPEC)


@pytest.mark.parametrize(
    "key,want", [("cache_dit_svdq_ptq", "cache-dit"), ("runtime_manifest", "Lite"), ("quantization_config", "'fp8'")]
)
def test_what_the_header_declares_is_refused_by_name(tmp_path, key, want):
    tensors, metadata, _ = checkpoint(True, NEW, False)
    save_file(tensors, tmp_path / "n.safetensors", metadata=metadata | {key: json.dumps({"quant_method": "fp8"})})
    with pytest.raises(UnsupportedError, match=want):
        convert.import_checkpoint(tmp_path / "n.safetensors", SPEC, tmp_path / "a.safetensors")


def test_comfyui_marks_its_layers(tmp_path):
    save_file({"a.weight": torch.zeros(8), "a.comfy_quant": torch.zeros(8).byte()}, tmp_path / "n.safetensors")
    with pytest.raises(UnsupportedError, match="a file of ComfyUI"):
        convert.describe(tmp_path / "n.safetensors", SPEC)


def test_a_quantized_folder_is_no_16_bit_checkpoint(tmp_path):
    """Its keys are unknown to the class, so they would be passed over."""
    spec = get_model("flux1-tiny")
    config = {**spec.config, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match=r"quantized by 'bitsandbytes' \(bitsandbytes of diffusers\)"):
        check_config(spec, tmp_path / "config.json")
