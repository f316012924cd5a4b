"""ControlNets for SDXL and FLUX.1, and small ones: what they add to a denoiser's features is their output.

The denoiser takes that as inputs where its engine is built with --controlnet (`ModelSpec.residuals`).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch

from svdq_trt.models import flux, sdxl
from svdq_trt.models.packed import BATCH, IMAGE, packed_spec
from svdq_trt.models.spec import ModelSpec, TensorIO
from svdq_trt.models.synthetic import Fill, Request, packed_latents, smooth_image

#: config.json of the published ControlNet for SDXL, without diffusers' bookkeeping keys; those for depth have the same.
SDXL_CONFIG: dict[str, Any] = {
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "attention_head_dim": (5, 10, 20),
    "block_out_channels": (320, 640, 1280),
    "class_embed_type": None,
    "conditioning_channels": 3,
    "conditioning_embedding_out_channels": (16, 32, 96, 256),
    "controlnet_conditioning_channel_order": "rgb",
    "cross_attention_dim": 2048,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "downsample_padding": 1,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "global_pool_conditions": False,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "projection_class_embeddings_input_dim": 2816,
    "resnet_time_scale_shift": "default",
    "transformer_layers_per_block": (1, 2, 10),
    "upcast_attention": None,
    "use_linear_projection": True,
}
SDXL_TINY_CONFIG: dict[str, Any] = {key: sdxl.TINY_CONFIG.get(key, value) for key, value in SDXL_CONFIG.items()}

#: Six two-stream blocks of FLUX.1 and no other.
FLUX_CONFIG: dict[str, Any] = {
    **{key: value for key, value in flux.FLUX_DEV_CONFIG.items() if key != "out_channels"},
    "conditioning_embedding_channels": None,
    "num_layers": 6,
    "num_mode": None,
    "num_single_layers": 0,
}
FLUX_TINY_CONFIG: dict[str, Any] = {key: flux.TINY_CONFIG.get(key, value) for key, value in FLUX_CONFIG.items()} | {
    "num_layers": 1,
    "num_single_layers": 1,
}

_DOWN, _MIDDLE = "down_block_res_samples", "mid_block_res_sample"
#: how strongly it controls, a factor of all that it returns
_SCALE = TensorIO("conditioning_scale", "act", (1,), default=1.0)


def _picture(r: Request) -> torch.Tensor:
    """[B, 3, H, W] in [0, 1]."""
    return smooth_image(r.shape, r.rng, step=64).sigmoid()


def _ones(r: Request) -> torch.Tensor:
    return torch.ones(r.shape)


class SDXLControlNetFamily(sdxl.SDXLFamily):
    """ControlNetModel with text_time conditioning."""

    synthetic: ClassVar[Sequence[tuple[str, Fill]]] = (
        *sdxl.SDXLFamily.synthetic,
        ("controlnet_cond", _picture),
        (_SCALE.name, _ones),
    )
    lists = (_DOWN,)
    results = (_DOWN, _MIDDLE)


class FluxControlNetFamily(flux.FluxFamily):
    """FluxControlNetModel whose picture comes as latents."""

    synthetic: ClassVar[Sequence[tuple[str, Fill]]] = (
        *flux.FluxFamily.synthetic,
        ("controlnet_cond", packed_latents),
        (_SCALE.name, _ones),
    )
    results = (flux.DOUBLE, flux.SINGLE)
    absent = ("input_hint_block",)


def _for_sdxl(config: dict[str, Any], base: ModelSpec, **own: Any) -> ModelSpec:
    picture = TensorIO("controlnet_cond", "act", sdxl.feature_map(config, config["conditioning_channels"], level=-3))
    return sdxl.text_time_spec(
        config,
        inputs=(picture, _SCALE),
        subfolder="controlnet",
        class_path="diffusers.models.controlnets.controlnet:ControlNetModel",
        outputs=sdxl.residuals(config, _DOWN, _MIDDLE),
        family=SDXLControlNetFamily(),
        pictures=("image",),
        profile=base.profile,
        calibration_pixels=base.calibration_pixels,
        **own,
    )


def _for_flux(config: dict[str, Any], base: ModelSpec, **own: Any) -> ModelSpec:
    picture = TensorIO("controlnet_cond", "act", (BATCH, IMAGE, config["in_channels"]))
    return packed_spec(
        "diffusers.models.controlnets.controlnet_flux:FluxControlNetModel",
        config,
        IMAGE,
        (picture, _SCALE, *flux.flux_inputs(config)),
        outputs=flux.residuals(config, {flux.DOUBLE: config["num_layers"], flux.SINGLE: config["num_single_layers"]}),
        family=FluxControlNetFamily(),
        subfolder="controlnet",
        pictures=("control_image",),
        profile=base.profile,
        **own,
    )


SDXL_CONTROLNET = _for_sdxl(
    SDXL_CONFIG,
    sdxl.SDXL,
    name="sdxl-controlnet",
    title="ControlNet for SDXL, canny",
    hub_id="diffusers/controlnet-canny-sdxl-1.0",
    parameters=1_251_014_160,
    twin="sdxl-controlnet-tiny",
)

SDXL_CONTROLNET_TINY = _for_sdxl(
    SDXL_TINY_CONFIG,
    sdxl.SDXL_TINY,
    name="sdxl-controlnet-tiny",
    title="The ControlNet's structure at 64 to 256 channels, for trials and tests",
    parameters=8_363_024,
)

FLUX_CONTROLNET = _for_flux(
    FLUX_CONFIG,
    flux.FLUX_DEV,
    name="flux1-controlnet",
    title="ControlNet for FLUX.1 dev, Union-Pro 2.0",
    hub_id="Shakker-Labs/FLUX.1-dev-ControlNet-Union-Pro-2.0",
    parameters=2_140_876_800,
    twin="flux1-controlnet-tiny",
)

FLUX_CONTROLNET_TINY = _for_flux(
    FLUX_TINY_CONFIG,
    flux.FLUX_TINY,
    name="flux1-controlnet-tiny",
    title="The ControlNet's structure at 128 channels, for trials and tests",
    parameters=1_012_608,
)
