"""PixArt-Sigma at 1024 pixels, as data and its few rules; a small model of the same structure."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from svdq_trt.models.dit_family import DiTFamily, gelu_tanh_mlp
from svdq_trt.models.recipe import LinearGroup
from svdq_trt.models.spec import Axis, ModelSpec, Profile, TensorIO

#: config.json of the published transformer, without diffusers' bookkeeping keys.
SIGMA_CONFIG: dict[str, Any] = {
    "activation_fn": "gelu-approximate",
    "attention_bias": True,
    "attention_head_dim": 72,
    "attention_type": "default",
    "caption_channels": 4096,
    "cross_attention_dim": 1152,
    "dropout": 0.0,
    "in_channels": 4,
    "interpolation_scale": 2,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-06,
    "norm_num_groups": 32,
    "norm_type": "ada_norm_single",
    "num_attention_heads": 16,
    "num_embeds_ada_norm": 1000,
    "num_layers": 28,
    "out_channels": 8,
    "patch_size": 2,
    "sample_size": 128,
    "upcast_attention": False,
    "use_additional_conditions": False,
}

#: Two blocks; every quantized K is a multiple of 128.
TINY_CONFIG: dict[str, Any] = SIGMA_CONFIG | {
    "attention_head_dim": 32,
    "caption_channels": 96,
    "cross_attention_dim": 128,
    "num_attention_heads": 4,
    "num_layers": 2,
    "sample_size": 16,
}


class PixArtFamily(DiTFamily):
    """PixArtTransformer2DModel: softmax attention, GELU MLP, positions that stretch with the image."""

    patches = "pos_embed"

    def block_groups(self, name: str) -> list[LinearGroup]:
        """Attention's nodes, then the MLP's."""
        return [*super().block_groups(name), *gelu_tanh_mlp(name)]


def _spec(
    name: str, title: str, hub_id: str, config: dict[str, Any], profile: Profile, pixels: int, **more: Any
) -> ModelSpec:
    batch, text = Axis("batch"), Axis("tokens")
    height, width = Axis("height", divisor=8, multiple=2), Axis("width", divisor=8, multiple=2)
    return ModelSpec(
        name=name,
        title=title,
        hub_id=hub_id,
        subfolder="transformer",
        variant="fp16",
        class_path="diffusers.models.transformers.pixart_transformer_2d:PixArtTransformer2DModel",
        class_aliases=("Transformer2DModel",),  # what the published config.json still says
        config=MappingProxyType(config),
        act_dtype="float16",
        pixel_multiple=16,
        profile=profile,
        calibration_pixels=pixels,
        inputs=(
            TensorIO("hidden_states", "act", (batch, config["in_channels"], height, width)),
            TensorIO("encoder_hidden_states", "act", (batch, text, config["caption_channels"])),
            TensorIO("timestep", "float32", (batch,)),
            TensorIO("encoder_attention_mask", "act", (batch, text)),
        ),
        outputs=(TensorIO("out_hidden_states", "act", (batch, config["out_channels"], height, width)),),
        family=PixArtFamily(),
        **more,
    )


PIXART_SIGMA = _spec(
    "pixart-sigma",
    "PixArt-Sigma XL, 1024 pixels",
    "PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
    SIGMA_CONFIG,
    Profile(batch=(1, 2, 4), height=(512, 1024, 1536), width=(512, 1024, 1536), tokens=(300, 300, 300)),
    512,
    parameters=610_856_096,
    twin="pixart-tiny",
    built=(89,),
)

PIXART_TINY = _spec(
    "pixart-tiny",
    "PixArt's structure at 128 channels, for trials and tests",
    "",
    TINY_CONFIG,
    Profile(batch=(1, 2, 4), height=(64, 128, 256), width=(64, 128, 256), tokens=(24, 24, 24)),
    256,
    parameters=713_120,
)
