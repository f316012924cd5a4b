"""SANA 1.6B at 1024 pixels, and a small model of the same structure."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

from svdq_trt.models.attention import FusedCrossAttention, FusedLinearAttention
from svdq_trt.models.family import Family
from svdq_trt.models.positions import PlainPatches
from svdq_trt.models.spec import Axis, ModelSpec, Profile, TensorIO
from svdq_trt.models.synthetic import flow_latents, padding_mask, t5_text, timestep_to_999

#: config.json of the published transformer, without diffusers' bookkeeping keys.
SANA_CONFIG: dict[str, Any] = {
    "attention_bias": False,
    "attention_head_dim": 32,
    "caption_channels": 2304,
    "cross_attention_dim": 2240,
    "cross_attention_head_dim": 112,
    "dropout": 0.0,
    "in_channels": 32,
    "interpolation_scale": None,
    "mlp_ratio": 2.5,
    "norm_elementwise_affine": False,
    "norm_eps": 1e-06,
    "num_attention_heads": 70,
    "num_cross_attention_heads": 20,
    "num_layers": 20,
    "out_channels": 32,
    "patch_size": 1,
    "sample_size": 32,
}

#: Two blocks; every quantized K is a multiple of 128, one of them with zeros behind 624 features.
TINY_CONFIG: dict[str, Any] = SANA_CONFIG | {
    "caption_channels": 96,
    "cross_attention_dim": 128,
    "cross_attention_head_dim": 64,
    "in_channels": 8,
    "mlp_ratio": 4.875,
    "num_attention_heads": 4,
    "num_cross_attention_heads": 2,
    "num_layers": 2,
    "out_channels": 8,
    "sample_size": 8,
}


class SanaFamily(Family):
    """SanaTransformer2DModel: linear attention, softmax cross attention, a convolutional feed-forward."""

    processors = (
        (r"transformer_blocks\.\d+\.attn1", FusedLinearAttention),
        (r"transformer_blocks\.\d+\.attn2", FusedCrossAttention),
    )
    synthetic = (
        ("hidden_states", flow_latents),
        ("encoder_hidden_states", t5_text),
        ("timestep", timestep_to_999),
        ("encoder_attention_mask", padding_mask),
    )

    def prepare(self, module: Any) -> None:
        """Leave out what a table of positions would be made from: there is none."""
        module.patch_embed = PlainPatches(module.patch_embed)


def _spec(config: dict[str, Any], **own: Any) -> ModelSpec:
    batch, text = Axis("batch"), Axis("tokens")
    height, width = Axis("height", divisor=32), Axis("width", divisor=32)
    return ModelSpec(
        variant="bf16",
        class_path="diffusers.models.transformers.sana_transformer:SanaTransformer2DModel",
        config=MappingProxyType(config),
        act_dtype="bfloat16",
        pixel_multiple=32,
        inputs=(
            TensorIO("hidden_states", "act", (batch, config["in_channels"], height, width)),
            TensorIO("encoder_hidden_states", "act", (batch, text, config["caption_channels"])),
            TensorIO("timestep", "float32", (batch,)),
            TensorIO("encoder_attention_mask", "act", (batch, text)),
        ),
        outputs=(TensorIO("out_hidden_states", "act", (batch, config["out_channels"], height, width)),),
        family=SanaFamily(),
        **own,
    )


SANA = _spec(
    SANA_CONFIG,
    name="sana-1.6b",
    title="SANA 1.6B, 1024 pixels",
    hub_id="Efficient-Large-Model/Sana_1600M_1024px_BF16_diffusers",
    profile=Profile(batch=(1, 2, 4), height=(512, 1024, 1536), width=(512, 1024, 1536), tokens=(300, 300, 300)),
    calibration_pixels=1024,
    parameters=1_604_462_752,
    twin="sana-tiny",
    built=(89,),
)

SANA_TINY = _spec(
    TINY_CONFIG,
    name="sana-tiny",
    title="SANA's structure at 128 channels, for trials and tests",
    profile=Profile(batch=(1, 2, 4), height=(64, 256, 512), width=(64, 256, 512), tokens=(24, 24, 24)),
    calibration_pixels=512,
    parameters=951_624,
)
