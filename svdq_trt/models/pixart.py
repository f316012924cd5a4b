"""PixArt-Sigma at 1024 pixels, and a small model of the same structure."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from svdq_trt.models.attention import FusedCrossAttention, FusedSelfAttention
from svdq_trt.models.family import Family
from svdq_trt.models.positions import Patches
from svdq_trt.models.spec import Axis, ModelSpec, Profile, TensorIO
from svdq_trt.models.synthetic import diffusion_latents, padding_mask, t5_text, timestep_to_999

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


class PixArtFamily(Family):
    """PixArtTransformer2DModel: softmax attention, GELU MLP, one adaLN for all blocks, positions that stretch."""

    processors = (
        (r"transformer_blocks\.\d+\.attn1", FusedSelfAttention),
        (r"transformer_blocks\.\d+\.attn2", FusedCrossAttention),
    )
    synthetic = (
        ("hidden_states", diffusion_latents),
        ("encoder_hidden_states", t5_text),
        ("timestep", timestep_to_999),
        ("encoder_attention_mask", padding_mask),
    )

    def prepare(self, module: Any) -> None:
        """Compute positions in the graph."""
        config = module.config
        module.pos_embed = Patches(module.pos_embed, config.num_attention_heads * config.attention_head_dim)


def _spec(config: dict[str, Any], **own: Any) -> ModelSpec:
    batch, text = Axis("batch"), Axis("tokens")
    height, width = Axis("height", divisor=8, multiple=2), Axis("width", divisor=8, multiple=2)
    return ModelSpec(
        variant="fp16",
        class_path="diffusers.models.transformers.pixart_transformer_2d:PixArtTransformer2DModel",
        class_aliases=("Transformer2DModel",),  # still in the published config.json
        config=MappingProxyType(config),
        act_dtype="float16",
        pixel_multiple=16,
        inputs=(
            TensorIO("hidden_states", "act", (batch, config["in_channels"], height, width)),
            TensorIO("encoder_hidden_states", "act", (batch, text, config["caption_channels"])),
            TensorIO("timestep", "float32", (batch,)),
            TensorIO("encoder_attention_mask", "act", (batch, text)),
        ),
        outputs=(TensorIO("out_hidden_states", "act", (batch, config["out_channels"], height, width)),),
        family=PixArtFamily(),
        **own,
    )


PIXART_SIGMA = _spec(
    SIGMA_CONFIG,
    name="pixart-sigma",
    title="PixArt-Sigma XL, 1024 pixels",
    hub_id="PixArt-alpha/PixArt-Sigma-XL-2-1024-MS",
    profile=Profile(batch=(1, 2, 4), height=(512, 1024, 1536), width=(512, 1024, 1536), tokens=(300, 300, 300)),
    calibration_pixels=512,
    parameters=610_856_096,
    twin="pixart-tiny",
    built=(89,),
)

PIXART_TINY = _spec(
    TINY_CONFIG,
    name="pixart-tiny",
    title="PixArt's structure at 128 channels, for trials and tests",
    profile=Profile(batch=(1, 2, 4), height=(64, 128, 256), width=(64, 128, 256), tokens=(24, 24, 24)),
    calibration_pixels=256,
    parameters=713_120,
)
