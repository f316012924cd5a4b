"""FLUX.1 dev and schnell, a small model of the same structure, and some blocks at full width."""

from __future__ import annotations

from collections.abc import Sequence
from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from svdq_trt.models.attention import JointAttention
from svdq_trt.models.family import Family
from svdq_trt.models.positions import RotaryTable
from svdq_trt.models.spec import Axis, ModelSpec, Profile, TensorIO
from svdq_trt.models.synthetic import Request, normal, smooth_image, t5_text

#: config.json of the published transformer, without diffusers' bookkeeping keys.
FLUX_DEV_CONFIG: dict[str, Any] = {
    "attention_head_dim": 128,
    "axes_dims_rope": (16, 56, 56),
    "guidance_embeds": True,
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
    "out_channels": None,
    "patch_size": 1,
    "pooled_projection_dim": 768,
}
FLUX_SCHNELL_CONFIG: dict[str, Any] = FLUX_DEV_CONFIG | {"guidance_embeds": False}

#: Every branch of the graph with two million parameters; every quantized K is a multiple of 128.
TINY_CONFIG: dict[str, Any] = FLUX_DEV_CONFIG | {
    "attention_head_dim": 64,
    "axes_dims_rope": (8, 28, 28),
    "in_channels": 16,
    "joint_attention_dim": 96,
    "num_attention_heads": 2,
    "num_layers": 2,
    "num_single_layers": 2,
    "pooled_projection_dim": 48,
}

_PATCH = 16  # pixels per side of one token: 8 by the VAE, 2 by the packing


def image_ids(rows: int, columns: int) -> torch.Tensor:
    """[rows * columns, 3] f32: 0, row and column of each token, as diffusers' pipelines make them."""
    grid = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack((torch.zeros_like(grid[0]), *grid), dim=-1).reshape(-1, 3).float()


def _grid(r: Request) -> tuple[int, int]:
    """Rows and columns of image tokens."""
    return r.sizes["height"] // _PATCH, r.sizes["width"] // _PATCH


def _packed_latents(r: Request) -> torch.Tensor:
    """[B, rows * columns, C]: a smooth image and noise, mixed as in flow matching."""
    value = normal(r)
    image = smooth_image((r.shape[0], r.shape[2], *_grid(r)), r.rng, step=4).flatten(2).transpose(1, 2)
    return r.noise * value + (1 - r.noise) * image


class FluxFamily(Family):
    """FluxTransformer2DModel: two-stream and one-stream blocks, modulated by adaLN."""

    processors = ((r"(single_)?transformer_blocks\.\d+\.attn", JointAttention),)
    synthetic = (
        ("hidden_states", _packed_latents),
        ("encoder_hidden_states", t5_text),
        ("timestep", lambda r: torch.full(r.shape, float(r.noise))),
        ("img_ids", lambda r: image_ids(*_grid(r))),
        ("txt_ids", lambda r: torch.zeros(r.shape)),
        ("guidance", lambda r: torch.full(r.shape, 3.5)),
    )

    def wrap(self, module: nn.Module, inputs: Sequence[str]) -> nn.Module:
        """Wrap the module as Family does, with angles in f32."""
        net: Any = module
        if not isinstance(net.pos_embed, RotaryTable):
            net.pos_embed = RotaryTable(net.pos_embed.theta, tuple(net.pos_embed.axes_dim))
        return super().wrap(module, inputs)


def _spec(config: dict[str, Any], **own: Any) -> ModelSpec:
    batch, text = Axis("batch"), Axis("tokens")
    image = Axis("height", divisor=_PATCH * _PATCH, by="width")
    channels, guidance = config["in_channels"], config["guidance_embeds"]
    return ModelSpec(
        class_path="diffusers.models.transformers.transformer_flux:FluxTransformer2DModel",
        config=MappingProxyType(config),
        act_dtype="bfloat16",
        pixel_multiple=_PATCH,
        calibration_pixels=256,
        inputs=(
            TensorIO("hidden_states", "act", (batch, image, channels)),
            TensorIO("encoder_hidden_states", "act", (batch, text, config["joint_attention_dim"])),
            TensorIO("pooled_projections", "act", (batch, config["pooled_projection_dim"])),
            TensorIO("timestep", "float32", (batch,)),
            TensorIO("img_ids", "float32", (image, 3)),
            TensorIO("txt_ids", "float32", (text, 3)),
            *((TensorIO("guidance", "float32", (batch,)),) if guidance else ()),
        ),
        outputs=(TensorIO("out_hidden_states", "act", (batch, image, channels)),),
        family=FluxFamily(),
        **own,
    )


_FULL = (512, 1024, 1536)

FLUX_DEV = _spec(
    FLUX_DEV_CONFIG,
    name="flux1-dev",
    title="FLUX.1 dev",
    hub_id="black-forest-labs/FLUX.1-dev",
    profile=Profile(batch=(1, 1, 2), height=_FULL, width=_FULL, tokens=(512, 512, 512)),
    parameters=11_901_408_320,
    twin="flux1-tiny",
    built=(89,),
)

FLUX_SCHNELL = _spec(
    FLUX_SCHNELL_CONFIG,
    name="flux1-schnell",
    title="FLUX.1 schnell",
    hub_id="black-forest-labs/FLUX.1-schnell",
    profile=Profile(batch=(1, 1, 2), height=_FULL, width=_FULL, tokens=(256, 256, 256)),
    parameters=11_891_178_560,
    twin="flux1-tiny",
)

#: For measuring: whole blocks at full width, in a thirtieth of the memory.
FLUX_BLOCKS = _spec(
    FLUX_DEV_CONFIG | {"num_layers": 2, "num_single_layers": 6},
    name="flux1-blocks",
    title="FLUX.1 at full width, 2 + 6 of its 19 + 38 blocks, for benchmarks",
    profile=FLUX_DEV.profile,
    parameters=1_593_338_432,
    twin="flux1-tiny",
)

FLUX_TINY = _spec(
    TINY_CONFIG,
    name="flux1-tiny",
    title="FLUX.1's structure at 128 channels, for trials and tests",
    profile=Profile(batch=(1, 1, 2), height=(64, 128, 256), width=(64, 128, 256), tokens=(16, 16, 16)),
    parameters=1_853_712,
)
