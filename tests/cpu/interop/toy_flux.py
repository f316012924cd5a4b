"""One FLUX block of 64 channels under FLUX's names: every kind of layer of a nunchaku file in 100 KB."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from svdq_trt.contract.formats import Activation
from svdq_trt.interop.layouts import Layout
from svdq_trt.models import ModelSpec, Profile
from svdq_trt.models.recipe import LinearGroup, Recipe, complete
from tests.cpu.interop import nunchaku_layers as make

C = 64
BLOCK = "transformer_blocks.0"


class _Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm1 = nn.Module()
        self.norm1.linear = nn.Linear(C, 6 * C)
        self.attn = nn.Module()
        for name in ("to_q", "to_k", "to_v"):
            setattr(self.attn, name, nn.Linear(C, C))
        self.attn.norm_q, self.attn.norm_k = nn.RMSNorm(C), nn.RMSNorm(C)
        self.attn.to_out = nn.ModuleList([nn.Linear(C, C)])
        self.ff = nn.Module()
        self.ff.net = nn.ModuleList([nn.Module(), nn.Identity(), nn.Linear(2 * C, C)])
        self.ff.net[0].proj = nn.Linear(C, 2 * C)


class FluxTransformer2DModel(nn.Module):
    """Named as diffusers' class, as the tables go by that name."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.x_embedder = nn.Linear(channels, C)
        self.transformer_blocks = nn.ModuleList([_Block()])


class GivenSpec(ModelSpec):
    """A spec whose family gives the recipe, as a toy has no forward to trace."""

    def recipe(self, module: nn.Module, skip: Sequence[str] = ()) -> Recipe:
        """The family's recipe."""
        found: Recipe = self.family.recipe(module, skip)  # type: ignore[attr-defined]
        return found


class _Family:
    WRAPPED = "transformer"

    def prepare(self, module: nn.Module) -> None:
        pass

    def recipe(self, module: nn.Module, skip) -> Recipe:
        a = f"{BLOCK}.attn"
        groups = [
            LinearGroup(f"{BLOCK}.norm1.linear", (f"{BLOCK}.norm1.linear",), weight_only=True),
            LinearGroup(f"{a}.to_qkv", tuple(f"{a}.to_{m}" for m in "qkv")),
            LinearGroup(f"{a}.to_out.0", (f"{a}.to_out.0",)),
            LinearGroup(f"{BLOCK}.ff.net.0", (f"{BLOCK}.ff.net.0.proj",), Activation.GELU_TANH),
            LinearGroup(f"{BLOCK}.ff.net.2", (f"{BLOCK}.ff.net.2",)),
        ]
        return complete(module, groups, {"x_embedder": "first"}, skip)

    def install(self, module: nn.Module, group: LinearGroup, fused: nn.Module) -> None:
        parent, _, leaf = group.node.rpartition(".")
        owner: Any = module.get_submodule(parent)
        if len(group.members) > 1:
            for name in group.members:
                delattr(owner, name.rpartition(".")[2])
        setattr(owner, leaf, fused)


SPEC = GivenSpec(
    name="toy-flux",
    title="",
    hub_id="",
    subfolder="transformer",
    variant="",
    class_path=f"{__name__}:FluxTransformer2DModel",
    config=MappingProxyType({"channels": 8}),
    act_dtype="bfloat16",
    pixel_multiple=16,
    profile=Profile((1, 1, 1), (16, 16, 16), (16, 16, 16), (1, 1, 1)),
    calibration_pixels=16,
    inputs=(),
    outputs=(),
    family=_Family(),
)


def checkpoint(fp4: bool, keys: Layout, old_names: bool) -> tuple[dict[str, torch.Tensor], dict[str, str], dict]:
    """Tensors, metadata, and by member (or fused members) the truth of each layer."""
    names = {
        "qkv": "qkv_proj" if old_names else "attn.to_qkv",
        "out": "out_proj" if old_names else "attn.to_out.0",
        "fc1": "mlp_fc1" if old_names else "ff.net.0.proj",
        "fc2": "mlp_fc2" if old_names else "ff.net.2",
        "q": "norm_q" if old_names else "attn.norm_q",
        "k": "norm_k" if old_names else "attn.norm_k",
    }
    more = {"fp4": fp4, "keys": keys, "rank": 16}
    truths = {
        "qkv": make.w4a4(f"{BLOCK}.{names['qkv']}", 3 * C, C, seed=1, scales="c", **more),
        "out": make.w4a4(f"{BLOCK}.{names['out']}", C, C, seed=2, scales="t", **more),
        "fc1": make.w4a4(f"{BLOCK}.{names['fc1']}", 2 * C, C, seed=3, scales="T", **more),
        "fc2": make.w4a4(f"{BLOCK}.{names['fc2']}", C, 2 * C, seed=4, **more),
        "norm": make.awq(f"{BLOCK}.norm1.linear", 6 * C, C, 6, seed=5),
    }
    g = torch.Generator().manual_seed(6)
    plain = {
        "x_embedder.weight": (C, 8),
        "x_embedder.bias": (C,),
        f"{BLOCK}.{names['q']}.weight": (C,),
        f"{BLOCK}.{names['k']}.weight": (C,),
    }
    tensors = {name: torch.randn(shape, generator=g).bfloat16() for name, shape in plain.items()}
    for truth in truths.values():
        tensors |= truth.tensors
    number = {"dtype": "fp4_e2m1_all" if fp4 else "int4", "group_size": 16 if fp4 else 64}
    metadata = {
        "config": json.dumps({"_class_name": "FluxTransformer2DModel", "channels": 8}),
        "comfy_config": "{}",
        "model_class": "NunchakuFluxTransformer2dModel",
        "quantization_config": json.dumps({"method": "svdquant", "weight": number, "activation": number, "rank": 16}),
    }
    return tensors, metadata, truths
