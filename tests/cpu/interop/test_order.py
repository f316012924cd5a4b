"""Files with nunchaku's names that are not nunchaku's: told by what they declare, and by the order of their codes."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from svdq_trt.artifact import svdq_file
from svdq_trt.base.errors import ShapeError, SvdqError, UnsupportedError
from svdq_trt.checkpoint.config_check import check_config
from svdq_trt.contract import numerics
from svdq_trt.contract.formats import INT4, NVFP4
from svdq_trt.contract.numerics import E4M3
from svdq_trt.interop import convert
from svdq_trt.interop.layouts import NEW
from svdq_trt.interop.order import Evidence, Order, Stored, check_order
from svdq_trt.interop.packing import FRAGMENTS, ROWS
from svdq_trt.interop.w4a4 import Rows
from svdq_trt.models import get_model
from svdq_trt.nn.restore import layer_of
from svdq_trt.quantize.scales import importance, search_scales
from tests.cpu.interop import nunchaku_layers as make
from tests.cpu.interop.toy_flux import BLOCK, SPEC, checkpoint


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


#: what a file beside nunchaku's own tensors says of them, and how that is refused
OTHERS = {
    "vllm-omni": ("config.json", {"quantization_config": {"quant_method": "svdquant"}}, "dtype I32, want I8"),
    "vllm-omni-file": ("quantization_config.json", {"rank": 16, "precision": "nvfp4"}, "dtype I32, want I8"),
    "lite": ("config.json", {"quantization_config": {"quant_method": "nunchaku_lite"}}, "no targets"),
    "cache-dit": ("quant_config.json", {"format": "cache_dit_svdq_quant_config"}, "version None, want 2"),
    "unknown": ("config.json", {"quantization_config": {"quant_method": "sdnq"}}, "quantized by 'sdnq'"),
    "unnamed": ("quantization_config.json", {"bits": 4}, "a method that it does not name"),
    "modelopt": ("config.json", {"quantization_config": {"quant_algo": "NVFP4_SVD"}}, "no tensor"),
    "no-object": ("config.json", {"quantization_config": [3]}, "a JSON list"),
}


@pytest.mark.parametrize("name,said,want", OTHERS.values(), ids=list(OTHERS))
@pytest.mark.parametrize("as_folder", [True, False], ids=["folder", "file"])
def test_what_a_file_beside_declares_is_held_against_the_tensors(tmp_path, name, said, want, as_folder):
    tensors, _, _ = checkpoint(True, NEW, False)
    file = tmp_path / "diffusion_pytorch_model.safetensors"
    save_file({n: t for n, t in tensors.items() if "_orig" not in n}, file)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / name).write_text(json.dumps(said))
    with pytest.raises(SvdqError, match=want):
        convert.import_checkpoint(tmp_path if as_folder else file, SPEC, tmp_path / "a.safetensors")
    assert not (tmp_path / "a.safetensors").exists()


@pytest.mark.parametrize(
    "key,want",
    [("cache_dit_svdq_ptq", "version None"), ("runtime_manifest", "targets None"), ("quantization_config", "'fp8'")],
)
def test_what_the_header_declares_is_held_against_the_tensors(tmp_path, key, want):
    tensors, metadata, _ = checkpoint(True, NEW, False)
    save_file(tensors, tmp_path / "n.safetensors", metadata=metadata | {key: json.dumps({"quant_method": "fp8"})})
    with pytest.raises(SvdqError, match=want):
        convert.import_checkpoint(tmp_path / "n.safetensors", SPEC, tmp_path / "a.safetensors")


@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "separate"])
def test_declared_rows_are_read_as_rows(tmp_path, stacked):
    """vLLM-Omni's folder: the same values as nunchaku's file has, but that all codes are signed there."""
    tensors, _, truths = checkpoint(True, NEW, False)
    names = {"qkv": "attn.to_qkv", "out": "attn.to_out.0", "fc1": "ff.net.0.proj", "fc2": "ff.net.2"}
    rows = in_rows({n: t for n, t in tensors.items() if "norm1" not in n})
    rows = {n: t for n, t in rows.items() if "_orig" not in n}
    rows |= {f"{BLOCK}.norm1.linear.weight": torch.randn(384, 64), f"{BLOCK}.norm1.linear.bias": torch.randn(384)}
    for key, name in names.items():  # nothing is padded there
        n, k = truths[key].weight.shape
        sizes = {"qweight": (n, k // 2), "wscales": (k // 16, n), "smooth_factor": (k,), "proj_down": (k, 16)}
        sizes |= {"proj_up": (n, 16), "bias": (n,), "wcscales": (n,)}
        for leaf, size in sizes.items():
            if (full := f"{BLOCK}.{name}.{leaf}") in rows:
                rows[full] = rows[full][tuple(slice(s) for s in size)].contiguous()
    if not stacked:
        for leaf in ("qweight", "wscales", "smooth_factor", "proj_down", "proj_up", "bias", "wcscales"):
            whole = rows.pop(f"{BLOCK}.attn.to_qkv.{leaf}")
            axis = {"wscales": 1}.get(leaf, 0)
            alike = leaf in ("smooth_factor", "proj_down")
            for i, member in enumerate("qkv"):
                part = whole if alike else whole.split(64, axis)[i]
                rows[f"{BLOCK}.attn.to_{member}.{leaf}"] = part.clone(memory_format=torch.contiguous_format)
    save_file(rows, tmp_path / "diffusion_pytorch_model.safetensors")
    said = {"_class_name": "FluxTransformer2DModel", "channels": 8, "quantization_config": {"quant_method": "svdquant"}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    report = convert.import_checkpoint(tmp_path, SPEC, tmp_path / "a.safetensors")
    loaded = svdq_file.load(tmp_path / "a.safetensors")
    assert report.kind == "vllm-omni" and not any(node.act_unsigned for node in loaded.nodes)
    nodes = {node.name: node for node in loaded.nodes}
    for key, name in {"qkv": "attn.to_qkv", "out": "attn.to_out.0", "fc1": "ff.net.0", "fc2": "ff.net.2"}.items():
        layer = layer_of(nodes[f"{BLOCK}.{name}"], loaded.tensors)
        assert (layer.dequantize().double() - truths[key].weight).norm() < 0.004 * truths[key].weight.norm()
        assert layer.rank == 16
        assert torch.equal(layer.bias, truths[key].bias)


@pytest.mark.parametrize("fp4", [False, True], ids=["int4", "fp4"])
def test_codes_of_the_other_order_are_refused_whatever_is_declared(tmp_path, fp4):
    tensors = make.w4a4("x", 256, 384, fp4=fp4, keys=NEW).tensors
    layer = Stored("x", Rows.of((256,)), 384, 1)
    for stored, order, other in (
        (tensors, Order.FRAGMENTS, Order.ROWS),
        (in_rows(tensors), Order.ROWS, Order.FRAGMENTS),
    ):
        reader = make.reader_of(tmp_path / "x", stored)
        check_order(reader, [layer], order, declared=False)
        with pytest.raises(UnsupportedError, match="codes in "):
            check_order(reader, [layer], other, declared=True)


def test_unsigned_rows_are_refused(tmp_path):
    """vLLM-Omni has no unsigned codes yet, and nothing would say which layers they are of."""
    tensors, _, _ = checkpoint(True, NEW, False)
    save_file(in_rows(tensors), tmp_path / "diffusion_pytorch_model.safetensors")
    said = {"quantization_config": {"quant_method": "svdquant", "act_unsigned": True}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    with pytest.raises(UnsupportedError, match="act_unsigned"):
        convert.import_checkpoint(tmp_path, SPEC, tmp_path / "a.safetensors")


def test_a_quantized_folder_is_no_16_bit_checkpoint(tmp_path):
    """Its keys are unknown to the class, so they would be passed over."""
    spec = get_model("flux1-tiny")
    config = {**spec.config, "quantization_config": {"quant_method": "bitsandbytes", "load_in_4bit": True}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(UnsupportedError, match=r"quantized by 'bitsandbytes' \(bitsandbytes of diffusers\)"):
        check_config(spec, tmp_path / "config.json")
