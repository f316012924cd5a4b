"""SDXL base 1.0 and SDXL-Turbo, and a small model of the same structure."""

from __future__ import annotations

from types import MappingProxyType
from typing import Any

import torch
from torch import nn

from svdq_trt.models.attention import FusedCrossAttention, FusedSelfAttention, SharedProjection, check_attention
from svdq_trt.models.family import Family
from svdq_trt.models.recipe import LinearGroup
from svdq_trt.models.spec import Axis, ModelSpec, Profile, TensorIO
from svdq_trt.models.synthetic import Request, diffusion_latents, large_channels, normal, timestep_to_999

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


def _clip_text(r: Request) -> torch.Tensor:
    """[B, T, K], like the output of CLIP's last but one layer: noise, some large channels, a large first token."""
    value, channels = normal(r), large_channels(r.shape[-1])
    value[..., channels] *= 8.0
    value[:, 0, channels] += 20.0
    return value


def _time_ids(r: Request) -> torch.Tensor:
    """[B, 6]: original height and width, crop top and left, target height and width."""
    size = [r.sizes["height"], r.sizes["width"]]
    return torch.tensor([*size, 0, 0, *size], dtype=torch.float32).expand(r.shape).clone()


class SDXLFamily(Family):
    """UNet2DConditionModel with text_time conditioning."""

    #: SDXL has 1, 2 or 10 blocks in a row. More would leave little of R_MAX for a LoRA on each of them.
    kv_blocks = 5
    synthetic = (
        ("sample", diffusion_latents),
        ("timestep", timestep_to_999),
        ("encoder_hidden_states", _clip_text),
        ("time_ids", _time_ids),
    )

    def install(self, module: nn.Module, group: LinearGroup, fused: nn.Module) -> None:
        """Install a node as Family does. Attentions with fused linears get a processor; others keep diffusers' own."""
        super().install(module, group, fused)
        if len(group.members) > 1:
            readers = list(dict.fromkeys(member.rpartition(".")[0] for member in group.members))
            shared = SharedProjection(len(readers))
            for index, name in enumerate(readers):
                attention: Any = module.get_submodule(name)
                own = group.node.endswith(".to_qkv")
                processor = FusedSelfAttention() if own else FusedCrossAttention(shared, index)
                check_attention(name, attention, type(processor))
                attention.set_processor(processor)

    def arguments(self, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Keyword arguments of the UNet: text embedding and sizes go into added_cond_kwargs, in f32.

        diffusers concatenates text_embeds with sinusoids that it computes in f32, and a strongly typed network takes
        no Concat of two dtypes; the cast here is for callers that pass 16 bit.
        """
        added = {name: inputs[name].float() for name in ("text_embeds", "time_ids")}
        return {name: value for name, value in inputs.items() if name not in added} | {"added_cond_kwargs": added}


def _spec(config: dict[str, Any], **own: Any) -> ModelSpec:
    batch = Axis("batch")
    height, width = (Axis(side, divisor=8, multiple=4) for side in ("height", "width"))  # the UNet halves twice
    pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
    return ModelSpec(
        subfolder="unet",
        variant="fp16",
        class_path="diffusers.models.unets.unet_2d_condition:UNet2DConditionModel",
        config=MappingProxyType(config),
        act_dtype="float16",
        pixel_multiple=32,
        inputs=(
            TensorIO("sample", "act", (batch, config["in_channels"], height, width)),
            TensorIO("timestep", "float32", (batch,)),
            TensorIO("encoder_hidden_states", "act", (batch, Axis("tokens"), config["cross_attention_dim"])),
            TensorIO("text_embeds", "float32", (batch, pooled)),
            TensorIO("time_ids", "float32", (batch, 6)),
        ),
        outputs=(TensorIO("out_sample", "act", (batch, config["out_channels"], height, width)),),
        family=SDXLFamily(),
        **own,
    )


SDXL = _spec(
    SDXL_CONFIG,
    name="sdxl",
    title="Stable Diffusion XL base 1.0",
    hub_id="stabilityai/stable-diffusion-xl-base-1.0",
    profile=Profile(batch=(1, 2, 4), height=(512, 1024, 1536), width=(512, 1024, 1536), tokens=(77, 77, 77)),
    calibration_pixels=512,
    parameters=2_567_463_684,
    twin="sdxl-tiny",
    built=(80, 89, 120),
)

#: The same UNet, distilled to run in one to four steps at 512 pixels.
SDXL_TURBO = _spec(
    SDXL_CONFIG | {"sample_size": 64},
    name="sdxl-turbo",
    title="SDXL-Turbo, 512 pixels",
    hub_id="stabilityai/sdxl-turbo",
    profile=Profile(batch=(1, 1, 4), height=(512, 512, 1024), width=(512, 512, 1024), tokens=(77, 77, 77)),
    calibration_pixels=512,
    parameters=2_567_463_684,
    twin="sdxl-tiny",
)

SDXL_TINY = _spec(
    TINY_CONFIG,
    name="sdxl-tiny",
    title="SDXL's structure at 64 to 256 channels, for trials and tests",
    profile=Profile(batch=(1, 2, 4), height=(64, 128, 256), width=(64, 128, 256), tokens=(77, 77, 77)),
    calibration_pixels=256,
    parameters=17_601_348,
)
