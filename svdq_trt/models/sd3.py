"""Stable Diffusion 3.5 medium and large, and a small model of the same structure."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch

from svdq_trt.models.attention import JointAttention
from svdq_trt.models.family import Family
from svdq_trt.models.positions import PositionTable, TablePatches
from svdq_trt.models.spec import Axis, ModelSpec, Profile, TensorIO
from svdq_trt.models.synthetic import flow_latents, normal

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


class SD3Family(Family):
    """SD3Transformer2DModel: FLUX's two-stream blocks, some with a second self attention; the last ends the text."""

    processors = ((r"transformer_blocks\.\d+\.attn2?", JointAttention),)
    synthetic = (
        ("hidden_states", flow_latents),
        ("encoder_hidden_states", lambda r: normal(r) * 0.2),
        ("timestep", lambda r: torch.full(r.shape, 1000.0 * r.noise)),
    )

    def prepare(self, module: Any) -> None:
        """Keep the table of positions in its two halves."""
        module.pos_embed = TablePatches(module.pos_embed, _table(module.config))


def _table(config: Any) -> PositionTable:
    """The positions of a model with that configuration, a dictionary."""
    channels = config["num_attention_heads"] * config["attention_head_dim"]
    return PositionTable(
        "pos_embed", config["pos_embed_max_size"], channels, config["sample_size"] // config["patch_size"]
    )


def _spec(config: dict[str, Any], **own: Any) -> ModelSpec:
    batch, text = Axis("batch"), Axis("tokens")
    most = config["pos_embed_max_size"] * config["patch_size"]
    height, width = (Axis(side, divisor=8, multiple=2, most=most) for side in ("height", "width"))
    return ModelSpec(
        class_path="diffusers.models.transformers.transformer_sd3:SD3Transformer2DModel",
        config=MappingProxyType(config),
        act_dtype="bfloat16",
        pixel_multiple=16,
        calibration_pixels=256,
        inputs=(
            TensorIO("hidden_states", "act", (batch, config["in_channels"], height, width)),
            TensorIO("encoder_hidden_states", "act", (batch, text, config["joint_attention_dim"])),
            TensorIO("pooled_projections", "act", (batch, config["pooled_projection_dim"])),
            TensorIO("timestep", "float32", (batch,)),
        ),
        outputs=(TensorIO("out_hidden_states", "act", (batch, config["out_channels"], height, width)),),
        family=SD3Family(),
        tables=(_table(config),),
        **own,
    )


_FULL = Profile(batch=(1, 2, 4), height=(512, 1024, 1536), width=(512, 1024, 1536), tokens=(333, 333, 333))

SD35_MEDIUM = _spec(
    MEDIUM_CONFIG,
    name="sd3.5-medium",
    title="Stable Diffusion 3.5 medium",
    hub_id="stabilityai/stable-diffusion-3.5-medium",
    profile=_FULL,
    parameters=2_243_171_520,
    twin="sd3-tiny",
    built=(89,),
)

SD35_LARGE = _spec(
    LARGE_CONFIG,
    name="sd3.5-large",
    title="Stable Diffusion 3.5 large",
    hub_id="stabilityai/stable-diffusion-3.5-large",
    profile=_FULL,
    parameters=8_056_627_520,
    twin="sd3-tiny",
)

SD3_TINY = _spec(
    TINY_CONFIG,
    name="sd3-tiny",
    title="Stable Diffusion 3.5's structure at 128 channels, for trials and tests",
    profile=Profile(batch=(1, 2, 4), height=(64, 128, 256), width=(64, 128, 256), tokens=(24, 24, 24)),
    parameters=1_805_072,
)
