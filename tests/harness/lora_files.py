"""LoRA files for tests: one set of factors, written as every trainer and tool spells it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file

from svdq_trt.lora.apply import layer_shapes
from svdq_trt.lora.flux_names import flux_original_names
from svdq_trt.lora.unet_names import unet_original_name
from svdq_trt.models import ModelSpec


@dataclass(frozen=True)
class Factors:
    """delta = alpha / r * up @ down; down [r, K] or [r, C, kh, kw], up [N, r] or [N, r, 1, 1]."""

    down: torch.Tensor
    up: torch.Tensor
    alpha: float


def make_factors(
    spec: ModelSpec, layers: Sequence[str], rank: int = 4, seed: int = 0, size: float = 0.05, alpha: float | None = None
) -> dict[str, Factors]:
    """Random factors whose delta is about `size` of a weight with unit-variance outputs."""
    shapes, rng = layer_shapes(spec), torch.Generator().manual_seed(seed)
    made = {}
    for layer in layers:
        n, *rest = shapes[layer]
        fan_in = int(torch.tensor(rest).prod())
        down = torch.randn((rank, *rest), generator=rng) * fan_in**-0.5
        up = torch.randn((n, rank) + (1,) * (len(rest) - 1), generator=rng) * size
        made[layer] = Factors(down.half().contiguous(), up.half().contiguous(), rank / 2 if alpha is None else alpha)
    return made


def unet_original(spec: ModelSpec, layer: str) -> str:
    return unet_original_name(layer, layer_shapes(spec), spec.config["layers_per_block"])


def write_peft(path: Path, factors: Mapping[str, Factors], prefix: str = "unet.") -> Path:
    """Write the file as diffusers' save_lora_weights does, with alpha in the metadata."""
    import json

    alphas = {name: f.alpha for name, f in factors.items()}
    tensors = {}
    for name, f in factors.items():
        tensors[f"{prefix}{name}.lora_A.weight"], tensors[f"{prefix}{name}.lora_B.weight"] = f.down, f.up
    ranks = {f"^{name}": len(f.down) for name, f in factors.items()}
    meta = {f"{prefix}lora_alpha": 1, f"{prefix}alpha_pattern": alphas, f"{prefix}rank_pattern": ranks}
    save_file(tensors, path, metadata={"format": "pt", "lora_adapter_metadata": json.dumps(meta)})
    return path


def write_named(
    path: Path,
    factors: Mapping[str, Factors],
    spell: Callable[[str], str],
    ends: tuple[str, str] = ("down", "up"),
    more: Mapping[str, torch.Tensor] | None = None,
) -> Path:
    """``<spelling>.lora_<end>.weight`` and ``.alpha``."""
    tensors = dict(more or {})
    for name, f in factors.items():
        layer = spell(name)
        assert layer not in tensors and layer, name
        for end, tensor in zip(ends, (f.down, f.up), strict=True):
            tensors[f"{layer}.lora_{end}.weight"] = tensor
        tensors[f"{layer}.alpha"] = torch.tensor(f.alpha)
    save_file(tensors, path)
    return path


def write_kohya(path: Path, factors: Mapping[str, Factors], spec: ModelSpec, **more: torch.Tensor) -> Path:
    """Write the file as kohya's trainer for SDXL does: the original UNet's names with underscores."""
    return write_named(
        path, factors, lambda name: "lora_unet_" + unet_original(spec, name).replace(".", "_"), more=more
    )


def write_comfy(path: Path, factors: Mapping[str, Factors], spec: ModelSpec) -> Path:
    """Write the file as ComfyUI does: dotted original names."""
    return write_named(path, factors, lambda name: "diffusion_model." + unet_original(spec, name))


def write_flux_original(folder: Path, spec: ModelSpec, rank: int = 8) -> tuple[Path, Path]:
    """One LoRA of every layer of a FLUX model: kohya's original, fused names; and diffusers' split ones."""
    shapes, rng = layer_shapes(spec), torch.Generator().manual_seed(4)
    original: dict[str, torch.Tensor] = {}
    split: dict[str, torch.Tensor] = {}
    for name, parts in flux_original_names({layer: shape[0] for layer, shape in shapes.items()}):
        k = shapes[parts[0][0]][1]
        down = torch.randn(rank, k, generator=rng) * k**-0.5
        up = torch.randn(sum(p[3] for p in parts), rank, generator=rng) * 0.015
        key = f"lora_unet_{name.replace('.', '_')}"
        original |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        original[f"{key}.alpha"] = torch.tensor(rank * 2.0)
        for layer in dict.fromkeys(p[0] for p in parts):
            rows = torch.zeros(shapes[layer][0], rank)
            for _, start, source, n in (p for p in parts if p[0] == layer):
                rows[start : start + n] = 2 * up[source : source + n]
            split |= {f"transformer.{layer}.lora_A.weight": down.clone(), f"transformer.{layer}.lora_B.weight": rows}
    save_file(original, folder / "original.safetensors")
    save_file(split, folder / "diffusers.safetensors")
    return folder / "original.safetensors", folder / "diffusers.safetensors"
