"""SDXL base 1.0 and a small model of the same structure, as data."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from svdq_trt.models.spec import Axis, ModelSpec, Profile, TensorIO
from svdq_trt.models.unet import UNetFamily

#: config.json of the published UNet, without diffusers' bookkeeping keys.
SDXL_CONFIG: dict[str, Any] = {
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "addition_embed_type_num_heads": 64,
    "addition_time_embed_dim": 256,
    "attention_head_dim": (5, 10, 20),  # diffusers' name for the number of heads; each head has 64 channels
    "block_out_channels": (320, 640, 1280),
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_dim": 2048,
    "cross_attention_norm": None,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_only_cross_attention": None,
    "mid_block_scale_factor": 1,
    "mid_block_type": "UNetMidBlock2DCrossAttn",
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "out_channels": 4,
    "projection_class_embeddings_input_dim": 2816,  # pooled text 1280 + 6 sizes of 256 channels
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "sample_size": 128,
    "time_cond_proj_dim": None,
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "transformer_layers_per_block": (1, 2, 10),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "upcast_attention": None,
    "use_linear_projection": True,
}

#: Every branch of SDXL's graph with some ten million parameters; every quantized K is a multiple of 128.
TINY_CONFIG: dict[str, Any] = SDXL_CONFIG | {
    "addition_time_embed_dim": 32,
    "attention_head_dim": (1, 2, 4),
    "block_out_channels": (64, 128, 256),
    "cross_attention_dim": 128,
    "layers_per_block": 1,
    "projection_class_embeddings_input_dim": 64 + 6 * 32,
    "sample_size": 16,
    "transformer_layers_per_block": (1, 2, 1),
}


def _spec(
    name: str, title: str, hub_id: str, config: dict[str, Any], profile: Profile, pixels: int, **more: Any
) -> ModelSpec:
    batch = Axis("batch")
    # The UNet halves twice, so 4 would do; steps of 64 pixels give 8: token counts are multiples of 4.
    height, width = Axis("height", divisor=8, multiple=8), Axis("width", divisor=8, multiple=8)
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    latent_in = (batch, config["in_channels"], height, width)
    latent_out = (batch, config["out_channels"], height, width)
    return ModelSpec(
        name=name,
        title=title,
        hub_id=hub_id,
        subfolder="unet",
        variant="fp16",
        class_path="diffusers.models.unets.unet_2d_condition:UNet2DConditionModel",
        config=MappingProxyType(config),
        act_dtype="float16",
        pixel_multiple=64,
        profile=profile,
        calibration_pixels=pixels,
        inputs=(
            TensorIO("sample", "act", latent_in),
            TensorIO("timestep", "float32", (batch,)),
            TensorIO("encoder_hidden_states", "act", (batch, Axis("tokens"), config["cross_attention_dim"])),
            TensorIO("text_embeds", "float32", (batch, pooled)),
            TensorIO("time_ids", "float32", (batch, 6)),
        ),
        outputs=(TensorIO("out_sample", "act", latent_out),),
        family=UNetFamily(),
        **more,
    )


SDXL = _spec(
    "sdxl",
    "Stable Diffusion XL base 1.0",
    "stabilityai/stable-diffusion-xl-base-1.0",
    SDXL_CONFIG,
    Profile(batch=(1, 2, 4), height=(512, 1024, 1536), width=(512, 1024, 1536), tokens=(77, 77, 77)),
    512,
    parameters=2_567_463_684,
    twin="sdxl-tiny",
    built=(80, 89, 120),
)

#: The same UNet, distilled for one to four steps at 512 pixels.
SDXL_TURBO = _spec(
    "sdxl-turbo",
    "SDXL-Turbo, 512 pixels",
    "stabilityai/sdxl-turbo",
    SDXL_CONFIG | {"sample_size": 64},
    Profile(batch=(1, 1, 4), height=(512, 512, 1024), width=(512, 512, 1024), tokens=(77, 77, 77)),
    512,
    parameters=2_567_463_684,
    twin="sdxl-tiny",
)

SDXL_TINY = _spec(
    "sdxl-tiny",
    "SDXL's structure at 64 to 256 channels, for trials and tests",
    "",
    TINY_CONFIG,
    Profile(batch=(1, 2, 4), height=(64, 128, 256), width=(64, 128, 256), tokens=(77, 77, 77)),
    256,
    parameters=17_601_348,
)
