"""SDXL base 1.0, Turbo, inpainting and refiner, SSD-1B, and a small model of the same structure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any, ClassVar

import torch
from torch import nn

from svdq_trt.models.attention import FusedCrossAttention, FusedSelfAttention, SharedProjection, check_attention
from svdq_trt.models.family import Family
from svdq_trt.models.recipe import LinearGroup
from svdq_trt.models.spec import Axis, ModelSpec, Profile, TensorIO
from svdq_trt.models.synthetic import (
    Fill,
    Request,
    diffusion_latents,
    large_channels,
    normal,
    smooth_image,
    timestep_to_999,
)

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

#: Also told which pixels to paint, and what the others are.
INPAINT_CONFIG: dict[str, Any] = SDXL_CONFIG | {"in_channels": 9}

#: The second of SDXL's two models; one text encoder, and an aesthetic score instead of the target size.
REFINER_CONFIG: dict[str, Any] = SDXL_CONFIG | {
    "attention_head_dim": (6, 12, 24, 24),
    "block_out_channels": (384, 768, 1536, 1536),
    "cross_attention_dim": 1280,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
    "projection_class_embeddings_input_dim": 2560,  # pooled text 1280 + 5 numbers of 256 channels
    "transformer_layers_per_block": 4,
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
}

#: SDXL with half of its transformer blocks, distilled.
SSD_1B_CONFIG: dict[str, Any] = SDXL_CONFIG | {
    "mid_block_type": "UNetMidBlock2D",
    "reverse_transformer_layers_per_block": ((4, 4, 10), (2, 1, 1), 1),
    "transformer_layers_per_block": (1, (2, 2), (4, 4)),
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


BATCH = Axis("batch")
#: arguments of a UNet: what a ControlNet adds to its features on the way down and in the middle, and an adapter
DOWN, MIDDLE = "down_block_additional_residuals", "mid_block_additional_residual"
ADAPTER = "down_intrablock_additional_residuals"


def _clip_text(r: Request) -> torch.Tensor:
    """[B, T, K], like the output of CLIP's last but one layer: noise, some large channels, a large first token."""
    value, channels = normal(r), large_channels(r.shape[-1])
    value[..., channels] *= 8.0
    value[:, 0, channels] += 20.0
    return value


def _latents(r: Request) -> torch.Tensor:
    """[B, 4, H, W] as diffusion_latents. With 9 channels: those, the mask of the lower half, the rest of the image."""
    if r.shape[1] == 4:
        return diffusion_latents(r)
    b, _, h, w = r.shape
    mask = torch.zeros(b, 1, h, w)
    mask[:, :, h // 2 :] = 1.0
    noisy = diffusion_latents(replace(r, shape=(b, 4, h, w)))
    return torch.cat((noisy, mask, smooth_image((b, 4, h, w), r.rng) * (1 - mask)), dim=1)


def _time_ids(r: Request) -> torch.Tensor:
    """[B, 6]: original height and width, crop top and left, target height and width; [B, 5]: ..., aesthetic score."""
    size = [r.sizes["height"], r.sizes["width"]]
    last = size if r.shape[1] == 6 else [6.0]
    return torch.tensor([*size, 0, 0, *last], dtype=torch.float32).expand(r.shape).clone()


class SDXLFamily(Family):
    """UNet2DConditionModel, and the ControlNets for it, with text_time conditioning."""

    #: SDXL has 1, 2 or 10 blocks in a row. More would leave little of R_MAX for a LoRA on each of them.
    kv_blocks = 5
    synthetic: ClassVar[Sequence[tuple[str, Fill]]] = (
        ("sample", _latents),
        ("timestep", timestep_to_999),
        ("encoder_hidden_states", _clip_text),
        ("time_ids", _time_ids),
    )
    lists = (DOWN,)

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
        rest = {name: value for name, value in inputs.items() if name not in added}
        return super().arguments(rest) | {"added_cond_kwargs": added}

    def flatten(self, call: dict[str, Any]) -> dict[str, Any]:
        """The inputs by name: residuals for the way down alone are an adapter's, as diffusers takes them."""
        if call.get(DOWN) is not None and call.get(MIDDLE) is None:
            call = {ADAPTER if name == DOWN else name: value for name, value in call.items()}
        return call


def feature_map(config: Mapping[str, Any], channels: int, level: int = 0) -> tuple[int | Axis, ...]:
    """[B, channels, H, W] of the latent, halved `level` times; level -3 is the image's own size."""
    last = len(config["block_out_channels"]) - 1  # where the sides are halved down to one
    height, width = (Axis(s, divisor=2 ** (3 + level), multiple=2 ** (last - level)) for s in ("height", "width"))
    return BATCH, channels, height, width


def residuals(config: Mapping[str, Any], down: str, middle: str) -> tuple[TensorIO, ...]:
    """What a ControlNet adds: `down` to all that the UNet keeps on the way down for the way up, `middle` in between."""
    widths = config["block_out_channels"]
    kept = [(widths[0], 0)]
    for level, channels in enumerate(widths):
        kept += [(channels, level)] * config["layers_per_block"]
        if level < len(widths) - 1:
            kept.append((channels, level + 1))  # halved for the next
    own = [TensorIO(f"{down}_{i}", "act", feature_map(config, *one)) for i, one in enumerate(kept)]
    return *own, TensorIO(middle, "act", feature_map(config, *kept[-1]))


def text_time_spec(
    config: dict[str, Any], *, inputs: Sequence[TensorIO] = (), time_ids: int = 6, **own: Any
) -> ModelSpec:
    """The spec of a model with SDXL's conditioning.

    Args:
        inputs: those behind the UNet's. time_ids: how many numbers of size, crop and score there are.
        own: the other fields.
    """
    pooled = config["projection_class_embeddings_input_dim"] - time_ids * config["addition_time_embed_dim"]
    return ModelSpec(
        variant="fp16",
        config=MappingProxyType(config),
        act_dtype="float16",
        pixel_multiple=8 * 2 ** (len(config["block_out_channels"]) - 1),
        inputs=(
            TensorIO("sample", "act", feature_map(config, config["in_channels"])),
            TensorIO("timestep", "float32", (BATCH,)),
            TensorIO("encoder_hidden_states", "act", (BATCH, Axis("tokens"), config["cross_attention_dim"])),
            TensorIO("text_embeds", "float32", (BATCH, pooled)),
            TensorIO("time_ids", "float32", (BATCH, time_ids)),
            *inputs,
        ),
        **own,
    )


def _spec(config: dict[str, Any], *, controlnet: bool = True, **own: Any) -> ModelSpec:
    """The spec of a UNet. `controlnet`: diffusers has pipelines that add a ControlNet's residuals."""
    return text_time_spec(
        config,
        subfolder="unet",
        class_path="diffusers.models.unets.unet_2d_condition:UNet2DConditionModel",
        outputs=(TensorIO("out_sample", "act", feature_map(config, config["out_channels"])),),
        residuals=residuals(config, DOWN, MIDDLE) if controlnet else (),
        family=SDXLFamily(),
        **own,
    )


#: of a pipeline that begins with a picture: all steps, from nothing but noise on
_ALL_STEPS = MappingProxyType({"strength": 1.0})
_FULL = Profile(batch=(1, 2, 4), height=(512, 1024, 1536), width=(512, 1024, 1536), tokens=(77, 77, 77))

SDXL = _spec(
    SDXL_CONFIG,
    name="sdxl",
    title="Stable Diffusion XL base 1.0",
    hub_id="stabilityai/stable-diffusion-xl-base-1.0",
    profile=_FULL,
    calibration_pixels=512,
    parameters=2_567_463_684,
    twin="sdxl-tiny",
    built=(80, 89, 120),
)

SDXL_INPAINT = _spec(
    INPAINT_CONFIG,
    name="sdxl-inpaint",
    title="Stable Diffusion XL inpainting 0.1",
    hub_id="diffusers/stable-diffusion-xl-1.0-inpainting-0.1",
    pictures=("image", "mask_image"),
    asked=_ALL_STEPS,
    profile=_FULL,
    calibration_pixels=512,
    parameters=2_567_478_084,
    twin="sdxl-tiny",
)

SDXL_REFINER = _spec(
    REFINER_CONFIG,
    controlnet=False,
    time_ids=5,
    name="sdxl-refiner",
    title="Stable Diffusion XL refiner 1.0",
    hub_id="stabilityai/stable-diffusion-xl-refiner-1.0",
    pictures=("image",),
    asked=_ALL_STEPS,
    profile=_FULL,
    calibration_pixels=512,
    parameters=2_259_526_660,
    twin="sdxl-tiny",
)

SSD_1B = _spec(
    SSD_1B_CONFIG,
    name="ssd-1b",
    title="Segmind SSD-1B, half of SDXL's blocks",
    hub_id="segmind/SSD-1B",
    profile=_FULL,
    calibration_pixels=512,
    parameters=1_331_334_404,
    twin="sdxl-tiny",
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
