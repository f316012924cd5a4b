"""FLUX.1 dev and schnell, as data; a small model of the same structure, and some blocks at full width."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from svdq_trt.models.flux_family import FluxFamily
from svdq_trt.models.spec import Axis, ModelSpec, Profile, TensorIO

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

_FULL = (512, 1024, 1536)


def _spec(name: str, title: str, hub_id: str, config: dict[str, Any], profile: Profile, **more: Any) -> ModelSpec:
    batch, text = Axis("batch"), Axis("tokens")
    image = Axis("height", divisor=256, by="width")  # a token is 16 x 16 pixels
    channels, guidance = config["in_channels"], config["guidance_embeds"]
    return ModelSpec(
        name=name,
        title=title,
        hub_id=hub_id,
        subfolder="transformer",
        variant="",
        class_path="diffusers.models.transformers.transformer_flux:FluxTransformer2DModel",
        config=MappingProxyType(config),
        act_dtype="bfloat16",
        pixel_multiple=16,
        profile=profile,
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
        **more,
    )


FLUX_DEV = _spec(
    "flux1-dev",
    "FLUX.1 dev",
    "black-forest-labs/FLUX.1-dev",
    FLUX_DEV_CONFIG,
    Profile(batch=(1, 1, 2), height=_FULL, width=_FULL, tokens=(512, 512, 512)),
    parameters=11_901_408_320,
    twin="flux1-tiny",
    built=(89,),
)

FLUX_SCHNELL = _spec(
    "flux1-schnell",
    "FLUX.1 schnell",
    "black-forest-labs/FLUX.1-schnell",
    FLUX_SCHNELL_CONFIG,
    Profile(batch=(1, 1, 2), height=_FULL, width=_FULL, tokens=(256, 256, 256)),
    parameters=11_891_178_560,
    twin="flux1-tiny",
)

#: For measuring: whole blocks at full width, in a thirtieth of the memory.
FLUX_BLOCKS = _spec(
    "flux1-blocks",
    "FLUX.1 at full width, 2 + 6 of its 19 + 38 blocks, for benchmarks",
    "",
    FLUX_DEV_CONFIG | {"num_layers": 2, "num_single_layers": 6},
    FLUX_DEV.profile,
    parameters=1_593_338_432,
    twin="flux1-tiny",
)

FLUX_TINY = _spec(
    "flux1-tiny",
    "FLUX.1's structure at 128 channels, for trials and tests",
    "",
    TINY_CONFIG,
    Profile(batch=(1, 1, 2), height=(64, 128, 256), width=(64, 128, 256), tokens=(16, 16, 16)),
    parameters=1_853_712,
)
