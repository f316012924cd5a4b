"""FLUX.2 dev and klein, and a small model of the same structure."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from svdq_trt.models.attention import JointAttention
from svdq_trt.models.flux import FluxFamily, image_ids
from svdq_trt.models.packed import GUIDANCE, IMAGES, TIMESTEP, packed_spec, positions, text_input
from svdq_trt.models.spec import ModelSpec, Profile
from svdq_trt.models.special_attention import ParallelAttention
from svdq_trt.models.synthetic import Request, token_grid

#: config.json of the published transformers, without diffusers' bookkeeping keys.
DEV_CONFIG: dict[str, Any] = {
    "attention_head_dim": 128,
    "axes_dims_rope": (32, 32, 32, 32),
    "eps": 1e-06,
    "guidance_embeds": True,
    "in_channels": 128,
    "joint_attention_dim": 15360,
    "mlp_ratio": 3.0,
    "num_attention_heads": 48,
    "num_layers": 8,
    "num_single_layers": 48,
    "out_channels": None,
    "patch_size": 1,
    "rope_theta": 2000,
    "timestep_guidance_channels": 256,
}
KLEIN_4B_CONFIG: dict[str, Any] = DEV_CONFIG | {
    "guidance_embeds": False,
    "joint_attention_dim": 7680,
    "num_attention_heads": 24,
    "num_layers": 5,
    "num_single_layers": 20,
}
KLEIN_9B_CONFIG: dict[str, Any] = KLEIN_4B_CONFIG | {
    "joint_attention_dim": 12288,
    "num_attention_heads": 32,
    "num_layers": 8,
    "num_single_layers": 24,
}

#: Two blocks of each kind; every quantized K is 128 or 384.
TINY_CONFIG: dict[str, Any] = DEV_CONFIG | {
    "attention_head_dim": 64,
    "axes_dims_rope": (16, 16, 16, 16),
    "in_channels": 16,
    "joint_attention_dim": 96,
    "num_attention_heads": 2,
    "num_layers": 2,
    "num_single_layers": 2,
}

_AXES = 4  # of positions: of the reference image, row, column, of the text's token


def _image_ids(r: Request) -> torch.Tensor:
    """[images * rows * columns, 4]: 0, or 10 times a reference's number; row, column, 0."""
    ids = image_ids(*token_grid(r), r.sizes["images"]) * torch.tensor([10, 1, 1])
    return nn.functional.pad(ids, (0, 1))


def _text_ids(r: Request) -> torch.Tensor:
    """[T, 4]: zeros and each token's position."""
    return nn.functional.pad(torch.arange(r.shape[0], dtype=torch.float32)[:, None], (_AXES - 1, 0))


def _forward(
    model: Any,
    hidden_states: torch.Tensor,
    encoder_hidden_states: torch.Tensor,
    timestep: torch.Tensor,
    img_ids: torch.Tensor,
    txt_ids: torch.Tensor,
    return_dict: bool,
    guidance: torch.Tensor | None = None,
) -> tuple[torch.Tensor]:
    """Flux2Transformer2DModel.forward without its cache; text and image have one rotary table."""
    dtype, tokens = hidden_states.dtype, encoder_hidden_states.shape[1]
    strength = None if guidance is None else guidance.to(dtype) * 1000
    time = model.time_guidance_embed(timestep.to(dtype) * 1000, strength)
    of_image, of_text = model.double_stream_modulation_img(time), model.double_stream_modulation_txt(time)
    rotary = model.pos_embed(torch.cat((txt_ids, img_ids)))
    x, text = model.x_embedder(hidden_states), model.context_embedder(encoder_hidden_states)
    for block in model.transformer_blocks:
        text, x = block(x, text, of_image, of_text, rotary)
    x = torch.cat((text, x), dim=1)
    of_both = model.single_stream_modulation(time)
    for block in model.single_transformer_blocks:
        x = block(x, None, of_both, rotary)
    return (model.proj_out(model.norm_out(x[:, tokens:], time)),)


class Flux2Family(FluxFamily):
    """Flux2Transformer2DModel: two-stream and one-stream blocks with SwiGLU; one modulation for all of a kind."""

    processors = (
        (r"transformer_blocks\.\d+\.attn", JointAttention),
        (r"single_transformer_blocks\.\d+\.attn", ParallelAttention),
    )
    synthetic = (("img_ids", _image_ids), ("txt_ids", _text_ids), *FluxFamily.synthetic)
    forward = staticmethod(_forward)

    def flatten(self, call: dict[str, Any]) -> dict[str, Any]:
        """Inputs by name: positions, which the pipelines repeat for each image, once."""
        return call | {name: call[name][0] for name in ("img_ids", "txt_ids") if call[name].ndim == 3}


def _spec(config: dict[str, Any], **own: Any) -> ModelSpec:
    inputs = (
        text_input(config),
        TIMESTEP,
        *positions(IMAGES, _AXES),
        *((GUIDANCE,) if config["guidance_embeds"] else ()),
    )
    path = "diffusers.models.transformers.transformer_flux2:Flux2Transformer2DModel"
    return packed_spec(path, config, IMAGES, inputs, family=Flux2Family(), **own)


_SIDE = (512, 1024, 1536)
_FULL = Profile(batch=(1, 1, 2), height=_SIDE, width=_SIDE, tokens=(512, 512, 512))

FLUX2_DEV = _spec(
    DEV_CONFIG,
    name="flux2-dev",
    title="FLUX.2 dev",
    hub_id="black-forest-labs/FLUX.2-dev",
    profile=_FULL,
    parameters=32_223_281_152,
    twin="flux2-tiny",
)

FLUX2_KLEIN_4B = _spec(
    KLEIN_4B_CONFIG,
    name="flux2-klein-4b",
    title="FLUX.2 klein 4B",
    hub_id="black-forest-labs/FLUX.2-klein-4B",
    profile=_FULL,
    parameters=3_875_544_576,
    built=(89,),
    twin="flux2-tiny",
)

FLUX2_KLEIN_9B = _spec(
    KLEIN_9B_CONFIG,
    name="flux2-klein-9b",
    title="FLUX.2 klein 9B",
    hub_id="black-forest-labs/FLUX.2-klein-9B",
    profile=_FULL,
    parameters=9_078_581_248,
    twin="flux2-tiny",
)

FLUX2_TINY = _spec(
    TINY_CONFIG,
    name="flux2-tiny",
    title="FLUX.2's structure at 128 channels, for trials and tests",
    profile=Profile(batch=(1, 1, 2), height=(64, 128, 256), width=(64, 128, 256), tokens=(16, 16, 16)),
    parameters=1_671_936,
)
