"""Every format against the library that made it or loads it: what we merge is what PEFT, diffusers and LyCORIS merge.

The reader that a build uses also makes the model that the build is checked with, so its mistakes show only here. The
table of formats in docs/lora.md is made of these rows.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from svdq_trt.lora.apply import LoraRequest, layer_shapes, merge_into, open_loras
from svdq_trt.lora.factors import NodeRows, node_delta
from svdq_trt.models import ModelSpec, get_model
from svdq_trt.runtime.lora import _outside
from tests.harness import lora_peers as peers
from tests.harness.lora_files import make_factors, unet_original, write_kohya

DOC = (Path(__file__).resolve().parents[3] / "docs" / "lora.md").read_text()
FLUX, SDXL = get_model("flux1-tiny"), get_model("sdxl-tiny")
SHAPES = {spec.name: layer_shapes(spec) for spec in (FLUX, SDXL)}
BLOCK = "down_blocks.1.attentions.0.transformer_blocks.0"
#: a linear of a fused node, one of a node of its own, a convolution, and one of 1x1
SDXL_LAYERS = [f"{BLOCK}.attn1.to_q", f"{BLOCK}.ff.net.2", "down_blocks.1.resnets.0.conv1"]
SDXL_LAYERS += ["down_blocks.1.resnets.0.conv_shortcut"]

#: a file, the parameters that its peer merged
Written = tuple[Path, dict[str, Tensor]]


@dataclass(frozen=True)
class Row:
    """A format: its name and tensors as the table has them, the library that we compare with, and its files.

    Attributes:
        write: (empty folder, strength) -> the same adapter as this library's writers spell it.
        strengths: at which the library means the same as we do.
    """

    name: str
    tensors: str
    peer: str
    write: Callable[[Path, float], Iterator[Written]]
    spec: ModelSpec = FLUX
    strengths: tuple[float, ...] = (1.0, -0.5)


def peft(
    name: str, tensors: str, kind: str = "LoraConfig", strengths: tuple[float, ...] = (1.0, -0.5), **more: Any
) -> Row:
    """An adapter that PEFT trains; written by diffusers' model, by its pipeline, and by PEFT."""

    def write(folder: Path, strength: float) -> Iterator[Written]:
        import peft

        own = "init_lora_weights" if kind == "LoraConfig" else "init_weights"
        config = getattr(peft, kind)(**({"target_modules": peers.TARGETS, own: False} | more))
        module = peers.peft_model(FLUX, config)
        want = peers.merged(copy.deepcopy(module), strength)
        for save in (peers.save_by_diffusers, peers.save_by_pipeline, peers.save_by_peft):
            yield save(module, folder / save.__name__), want

    return Row(name, tensors, "PEFT", write, strengths=strengths)


def lycoris(name: str, tensors: str, module: str, kind: str, **more: Any) -> Row:
    """An adapter that LyCORIS trains."""

    def write(folder: Path, strength: float) -> Iterator[Written]:
        import importlib

        made = getattr(importlib.import_module(f"lycoris.modules.{module}"), kind), {"lora_dim": 4, "alpha": 2} | more
        names = {layer: unet_original(SDXL, layer) for layer in SDXL_LAYERS}
        path = folder / "lycoris.safetensors"
        yield path, peers.lycoris(SDXL, dict.fromkeys(SDXL_LAYERS, made), names, path, strength)

    return Row(name, tensors, "LyCORIS", write, SDXL)


def loaded(name: str, tensors: str, make: Callable[[Path], Path], spec: ModelSpec = FLUX) -> Row:
    """A file that diffusers' pipelines load."""

    def write(folder: Path, strength: float) -> Iterator[Written]:
        path = make(folder / "x.safetensors")
        yield path, peers.loaded_by_diffusers(spec, path, strength)

    return Row(name, tensors, "diffusers", write, spec)


def flux_file(path: Path, names: dict[str, tuple[int, int]], ends: tuple[str, str], dtype: Any, alpha: Any) -> Path:
    """Factors of rank 4 for layers of (N, K) by name."""
    g, tensors = torch.Generator().manual_seed(7), {}
    for name, (n, k) in names.items():
        tensors[f"{name}.{ends[0]}.weight"] = (torch.randn(4, k, generator=g) * 0.1).to(dtype)
        tensors[f"{name}.{ends[1]}.weight"] = (torch.randn(n, 4, generator=g) * 0.1).to(dtype)
        if alpha is not None:
            tensors[f"{name}.alpha"] = torch.tensor(alpha)
    save_file(tensors, path)
    return path


BFL = {"double_blocks.0.img_attn.qkv": (384, 128), "double_blocks.1.txt_mlp.0": (512, 128)}
BFL |= {"double_blocks.0.img_mod.lin": (768, 128), "single_blocks.1.linear2": (128, 640)}
XLABS = {"double_blocks.0.processor.qkv_lora1": (384, 128), "double_blocks.0.processor.qkv_lora2": (384, 128)}
XLABS |= {"double_blocks.1.processor.proj_lora1": (128, 128), "double_blocks.1.processor.proj_lora2": (128, 128)}
XLABS |= {"single_blocks.0.processor.qkv_lora": (384, 128), "single_blocks.0.processor.proj_lora": (128, 640)}


def kohya_flux(path: Path, dtype: Any = torch.bfloat16, alpha: Any = 2.0) -> Path:
    names = {f"lora_unet_{name.replace('.', '_')}": size for name, size in BFL.items()}
    return flux_file(path, names, ("lora_down", "lora_up"), dtype, alpha)


def comfy_flux(path: Path) -> Path:
    names = {f"diffusion_model.{name}": size for name, size in BFL.items()}
    return flux_file(path, names, ("lora_down", "lora_up"), torch.float16, 2.0)


def kohya_sdxl(path: Path) -> Path:
    return write_kohya(path, make_factors(SDXL, SDXL_LAYERS), SDXL)


def both_namings(path: Path) -> Path:
    """The same tensors by the original UNet's names and by diffusers', as some files have them for two programs."""
    tensors = load_file(kohya_sdxl(path))
    for layer in SDXL_LAYERS:
        old, new = (f"lora_unet_{n.replace('.', '_')}" for n in (unet_original(SDXL, layer), layer))
        tensors |= {
            new + name.removeprefix(old): t.clone() for name, t in tensors.items() if name.startswith(f"{old}.")
        }
    save_file(tensors, path)
    return path


def mixed_ranks(folder: Path, strength: float) -> Iterator[Written]:
    """Loaded by diffusers and saved again, which then writes patterns that begin with "^"."""
    shapes, g, tensors = SHAPES[FLUX.name], torch.Generator().manual_seed(1), {}
    for name in ("transformer_blocks.0.attn.to_q", "transformer_blocks.1.attn.to_q", "proj_out"):
        r = 16 if name == "proj_out" else 4
        tensors[f"transformer.{name}.lora_A.weight"] = torch.randn(r, shapes[name][1], generator=g)
        tensors[f"transformer.{name}.lora_B.weight"] = torch.randn(shapes[name][0], r, generator=g)
    save_file(tensors, folder / "x.safetensors")
    peers.quiet()
    module: Any = peers.model(FLUX)
    module.load_lora_adapter(load_file(folder / "x.safetensors"), prefix="transformer", adapter_name="default")
    want = peers.merged(copy.deepcopy(module), strength)
    yield folder / "x.safetensors", want
    yield peers.save_by_pipeline(module, folder / "again"), want


PATTERNS = {"rank_pattern": {"^proj_out": 16}, "alpha_pattern": {r"transformer_blocks\.\d+\.attn\.to_q": 32, "to_k": 2}}
AB, KOHYA = "`lora_A`, `lora_B`", "`lora_down`, `lora_up`"
ROWS = (
    peft("LoRA", AB, r=8, lora_alpha=3),
    peft("LoRA, rslora", AB, r=8, lora_alpha=3, use_rslora=True),
    peft("LoRA, ranks and alphas by pattern", AB, r=8, lora_alpha=8, **PATTERNS),
    Row("LoRA of mixed ranks", AB, "diffusers", mixed_ranks),
    peft("LoRA with `lora_bias`", f"{AB} with bias", r=8, lora_bias=True, target_modules=["to_q", "ff.net.2"]),
    peft("LoRA with `modules_to_save`", "`weight`, `bias`", r=8, target_modules=["to_q"], modules_to_save=["proj_out"]),
    peft("DoRA", "`lora_magnitude_vector`", r=8, lora_alpha=4, use_dora=True),
    peft("LoHa", "`hada_w1_a` ...", "LoHaConfig", r=4, alpha=2),
    peft("LoKr", "`lokr_w1`, `lokr_w2_a` ...", "LoKrConfig", r=4, alpha=2),
    peft(
        "LoKr, both factors in two",
        "`lokr_w1_a` ...",
        "LoKrConfig",
        r=2,
        alpha=1,
        decompose_both=True,
        decompose_factor=8,
    ),
    peft("LoKr, both factors whole", "`lokr_w1`, `lokr_w2`", "LoKrConfig", r=64, alpha=2),
    peft("OFT", "`oft_R`", "OFTConfig", (1.0,), oft_block_size=32),  # PEFT's has no strength
    peft("OFT, exact rotations", "`oft_R`", "OFTConfig", (1.0,), oft_block_size=16, use_cayley_neumann=False),
    peft(
        "OFT, one block for all",
        "`oft_R`",
        "OFTConfig",
        (1.0,),
        oft_block_size=32,
        block_share=True,
        num_cayley_neumann_terms=3,
    ),
    loaded("kohya for FLUX.1, original names", KOHYA, kohya_flux),
    loaded("the same with whole numbers as alpha", KOHYA, lambda p: kohya_flux(p, alpha=2)),
    loaded("ComfyUI for FLUX.1", KOHYA, comfy_flux),
    loaded(
        "XLabs for FLUX.1",
        "`processor.qkv_lora1.down` ...",
        lambda p: flux_file(p, XLABS, ("down", "up"), torch.bfloat16, None),
    ),
    loaded("kohya for SDXL, original names", KOHYA, kohya_sdxl, SDXL),
    loaded("kohya for SDXL, two namings in one file", KOHYA, both_namings, SDXL),
    lycoris("LoCon with a middle convolution", f"{KOHYA}, `lora_mid`", "locon", "LoConModule", use_tucker=True),
    lycoris("DoRA", "`dora_scale` per row", "locon", "LoConModule", weight_decompose=True),
    lycoris("DoRA, older", "`dora_scale` per column", "locon", "LoConModule", weight_decompose=True, wd_on_out=False),
    lycoris("LoHa of tensors", "`hada_t1`, `hada_t2`", "loha", "LohaModule", use_tucker=True),
    lycoris(
        "LoHa with DoRA", "`hada_w1_a`, `dora_scale` ...", "loha", "LohaModule", use_tucker=True, weight_decompose=True
    ),
    lycoris("LoKr", "`lokr_w1`, `lokr_w2_a` ...", "lokr", "LokrModule", factor=8, use_tucker=True),
    lycoris("LoKr, full matrix", "`lokr_w1`, `lokr_w2`", "lokr", "LokrModule", factor=8, full_matrix=True),
    lycoris(
        "LoKr with DoRA",
        "`lokr_w1`, `dora_scale` ...",
        "lokr",
        "LokrModule",
        factor=8,
        use_tucker=True,
        weight_decompose=True,
    ),
    lycoris("OFT", "`oft_blocks`", "diag_oft", "DiagOFTModule", lora_dim=8),
    lycoris(
        "OFT, bounded and rescaled",
        "`oft_blocks`, `rescale`",
        "diag_oft",
        "DiagOFTModule",
        lora_dim=8,
        constraint=0.001,
        rescaled=True,
    ),
)


def treatment(lora: Any, shapes: dict[str, tuple[int, ...]], weights: dict[str, Tensor]) -> tuple[str, str]:
    """What becomes of a file's linears in 4-bit layers and in slots, from what its changes are."""
    linears = [name for name in lora.by_layer if len(shapes[name]) == 2]
    full, slots = False, set()
    for name in linears:
        delta = node_delta(lora.by_layer, NodeRows(name, {name: 0}, *shapes[name]), 1.0, weights.__getitem__)
        full |= delta.full is not None
        slots |= {_outside(change, set(shapes)) for change, _ in lora.by_layer[name]}
    held = "no" if any(slots) else "best factors" if full else "exact"
    return "best factors" if full else "exact", held


@pytest.mark.parametrize("row", ROWS, ids=lambda row: f"{row.peer}: {row.name}".replace(" ", "-"))
def test_a_file_is_what_its_library_makes_of_it(row, tmp_path):
    pytest.importorskip(row.peer.lower(), reason=f"{row.peer} is not installed")
    pytest.importorskip("peft", reason="PEFT, which merges for diffusers, is not installed")
    before = dict(peers.model(row.spec).named_parameters())
    for strength in row.strengths:
        folder = tmp_path / str(strength)
        folder.mkdir()
        for path, want in row.write(folder, strength):
            loras = open_loras([LoraRequest(path, strength)], row.spec, SHAPES[row.spec.name], False)
            module = peers.model(row.spec)
            merge_into(module, loras)
            got = dict(module.named_parameters())
            moved = {name for name, tensor in got.items() if not torch.equal(tensor, before[name])}
            assert moved and moved <= want.keys(), path
            for name, tensor in want.items():
                change = tensor - before[name]
                assert (got[name] - before[name] - change).norm() <= 1e-5 * change.norm() + 1e-6, (path, name)
            four_bit, slots = treatment(loras[0], SHAPES[row.spec.name], before)
            line = f"| {row.name} | {row.tensors} | {row.peer} | {four_bit} | {slots} |"
            assert line in DOC, f"docs/lora.md lacks: {line}"


def test_the_table_has_no_other_rows():
    table = DOC.partition("| format | tensors |")[2].partition("\n\n")[0]
    rows = [line.split(" | ")[:3] for line in table.splitlines()[2:]]
    assert rows == [[f"| {row.name}", row.tensors, row.peer] for row in ROWS]
