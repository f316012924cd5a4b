"""Stable Diffusion 3.5 medium and large, as data and their few rules; a small model of the same structure."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from svdq_trt.base.errors import UnsupportedError
from svdq_trt.models.flux_family import double_block
from svdq_trt.models.joint_attention import JointAttention
from svdq_trt.models.patches import compute_positions
from svdq_trt.models.recipe import LinearGroup, Recipe, complete, weight_layers
from svdq_trt.models.spec import Axis, ModelSpec, Profile, TensorIO
from svdq_trt.models.synthetic import smooth_image

#: config.json of the published transformers, without diffusers' bookkeeping keys.
MEDIUM_CONFIG: dict[str, Any] = {
    "attention_head_dim": 64,
    "caption_projection_dim": 1536,
    "dual_attention_layers": tuple(range(13)),
    "in_channels": 16,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 24,
    "out_channels": 16,
    "patch_size": 2,
    "pooled_projection_dim": 2048,
    "pos_embed_max_size": 384,
    "qk_norm": "rms_norm",
    "sample_size": 128,
}
LARGE_CONFIG: dict[str, Any] = MEDIUM_CONFIG | {
    "caption_projection_dim": 2432,
    "dual_attention_layers": (),
    "num_attention_heads": 38,
    "num_layers": 38,
    "pos_embed_max_size": 192,
}

#: A block with dual attention, one without, and the last, whose text stream ends; every quantized K is 128 or 512.
TINY_CONFIG: dict[str, Any] = MEDIUM_CONFIG | {
    "caption_projection_dim": 128,
    "dual_attention_layers": (0,),
    "in_channels": 4,
    "joint_attention_dim": 96,
    "num_attention_heads": 2,
    "num_layers": 3,
    "out_channels": 4,
    "pooled_projection_dim": 48,
    "pos_embed_max_size": 24,
    "sample_size": 16,
}

_REASONS = (
    (r"pos_embed\.proj|context_embedder", "first layer of a stream: its error enters every block"),
    (r"time_text_embed\..*", "time and text embedding: one row per image, read by every block"),
    (r"proj_out", "last linear: few features, sets the quality of the latent"),
)


class SD3Family:
    """Rules and surgery for SD3Transformer2DModel: FLUX's two-stream blocks, some with a second self attention."""

    WRAPPED = "transformer"

    def prepare(self, module: nn.Module) -> None:
        """Positions are computed in the graph."""
        compute_positions(module)

    def recipe(self, module: nn.Module, skip: Sequence[str]) -> Recipe:
        """Blocks in the order they run; every other layer gets its reason from the table above."""
        net: Any = module
        layers = weight_layers(module)
        candidates: list[LinearGroup] = []
        for i in range(len(net.transformer_blocks)):
            name = f"transformer_blocks.{i}"
            a2 = f"{name}.attn2"
            candidates += double_block(name)
            candidates.append(LinearGroup(f"{a2}.to_qkv", tuple(f"{a2}.to_{m}" for m in "qkv")))
            candidates.append(LinearGroup(f"{a2}.to_out.0", (f"{a2}.to_out.0",)))
        candidates.append(LinearGroup("norm_out.linear", ("norm_out.linear",), weight_only=True))
        candidates = [g for g in candidates if set(g.members) <= layers.keys()]  # not every block has all of them
        owned = {m for g in candidates for m in g.members}
        return complete(module, candidates, {n: _reason(n) for n in layers if n not in owned}, skip)

    def install(self, module: nn.Module, group: LinearGroup, fused: nn.Module) -> None:
        """Set `fused` at the node's name; of several linears, remove them and change the processor."""
        parent_name, _, leaf = group.node.rpartition(".")
        parent: Any = module.get_submodule(parent_name)
        if len(group.members) > 1:
            for name in group.members:
                delattr(parent, name.rpartition(".")[2])
            parent.set_processor(JointAttention())
        setattr(parent, leaf, fused)

    def wrap(self, module: nn.Module) -> nn.Module:
        """See FlatSD3."""
        return FlatSD3(module)

    def fill_input(
        self,
        io: TensorIO,
        shape: tuple[int, ...],
        sizes: Mapping[str, int],
        noise: float,
        rng: torch.Generator,
    ) -> torch.Tensor:
        """Synthetic inputs: latents a smooth image and noise, mixed as flow matching does; text as T5's, about."""
        if io.name == "timestep":
            return torch.full(shape, 1000.0 * noise)
        value = torch.randn(shape, generator=rng)
        if io.name == "hidden_states":
            image = smooth_image(shape, rng)
            return noise * value + (1 - noise) * image
        return value * 0.2 if io.name == "encoder_hidden_states" else value


class FlatSD3(nn.Module):
    """Transformer with positional inputs (hidden_states, encoder_hidden_states, pooled_projections, timestep)."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer
        net: Any = transformer
        for block in net.transformer_blocks:
            block.attn.set_processor(JointAttention())
            if block.attn2 is not None:
                block.attn2.set_processor(JointAttention())

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        pooled_projections: torch.Tensor,
        timestep: torch.Tensor,
    ) -> torch.Tensor:
        """Predicted velocity, in the shape and dtype of `hidden_states`."""
        inputs = (hidden_states, encoder_hidden_states, pooled_projections, timestep)
        out: torch.Tensor = self.transformer(*inputs, return_dict=False)[0]
        return out


def _reason(name: str) -> str:
    for pattern, reason in _REASONS:
        if re.fullmatch(pattern, name):
            return reason
    raise UnsupportedError(f"layer '{name}'", "no rule for it", "a layer of Stable Diffusion 3")


def _spec(name: str, title: str, hub_id: str, config: dict[str, Any], profile: Profile, **more: Any) -> ModelSpec:
    batch, text = Axis("batch"), Axis("tokens")
    height, width = Axis("height", divisor=8, multiple=2), Axis("width", divisor=8, multiple=2)
    return ModelSpec(
        name=name,
        title=title,
        hub_id=hub_id,
        subfolder="transformer",
        variant="",
        class_path="diffusers.models.transformers.transformer_sd3:SD3Transformer2DModel",
        config=MappingProxyType(config),
        act_dtype="bfloat16",
        pixel_multiple=16,
        profile=profile,
        calibration_pixels=256,
        inputs=(
            TensorIO("hidden_states", "act", (batch, config["in_channels"], height, width)),
            TensorIO("encoder_hidden_states", "act", (batch, text, config["joint_attention_dim"])),
            TensorIO("pooled_projections", "act", (batch, config["pooled_projection_dim"])),
            TensorIO("timestep", "float32", (batch,)),
        ),
        outputs=(TensorIO("out_hidden_states", "act", (batch, config["out_channels"], height, width)),),
        family=SD3Family(),
        derived=("pos_embed.pos_embed",),
        **more,
    )


_FULL = Profile(batch=(1, 2, 4), height=(512, 1024, 1536), width=(512, 1024, 1536), tokens=(333, 333, 333))

SD35_MEDIUM = _spec(
    "sd3.5-medium",
    "Stable Diffusion 3.5 medium",
    "stabilityai/stable-diffusion-3.5-medium",
    MEDIUM_CONFIG,
    _FULL,
    parameters=2_243_171_520,
    twin="sd3-tiny",
    built=(89,),
)

SD35_LARGE = _spec(
    "sd3.5-large",
    "Stable Diffusion 3.5 large",
    "stabilityai/stable-diffusion-3.5-large",
    LARGE_CONFIG,
    _FULL,
    parameters=8_056_627_520,
    twin="sd3-tiny",
)

SD3_TINY = _spec(
    "sd3-tiny",
    "Stable Diffusion 3.5's structure at 128 channels, for trials and tests",
    "",
    TINY_CONFIG,
    Profile(batch=(1, 2, 4), height=(64, 128, 256), width=(64, 128, 256), tokens=(24, 24, 24)),
    parameters=1_805_072,
)
