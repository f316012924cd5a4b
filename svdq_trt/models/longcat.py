"""LongCat-Image, about half of FLUX.1's blocks with another text, and a small model of the same structure."""

from __future__ import annotations

from typing import Any

import torch

from svdq_trt.models.flux import FluxFamily, image_ids
from svdq_trt.models.packed import IMAGE, TIMESTEP, packed_spec, positions, text_input
from svdq_trt.models.spec import ModelSpec, Profile
from svdq_trt.models.synthetic import Request, token_grid

#: config.json of the published transformer, without diffusers' bookkeeping keys.
LONGCAT_CONFIG: dict[str, Any] = {
    "attention_head_dim": 128,
    "axes_dims_rope": (16, 56, 56),
    "in_channels": 64,
    "joint_attention_dim": 3584,
    "num_attention_heads": 24,
    "num_layers": 10,
    "num_single_layers": 20,
    "patch_size": 1,
    "pooled_projection_dim": 3584,
}

#: Two blocks of each kind; every quantized K is 128 or 512.
TINY_CONFIG: dict[str, Any] = LONGCAT_CONFIG | {
    "attention_head_dim": 64,
    "axes_dims_rope": (8, 28, 28),
    "joint_attention_dim": 96,
    "num_attention_heads": 2,
    "num_layers": 2,
    "num_single_layers": 2,
    "pooled_projection_dim": 96,
}

_TEXT_TOKENS = 512  # to which the pipeline pads the text; an image's rows and columns count on from there


def _image_ids(r: Request) -> torch.Tensor:
    """[rows * columns, 3]: 1, row and column, which the pipeline counts behind the text's."""
    return image_ids(*token_grid(r)) + torch.tensor([1, _TEXT_TOKENS, _TEXT_TOKENS])


def _text_ids(r: Request) -> torch.Tensor:
    """[T, 3]: 0 and each token's position, twice."""
    at = torch.arange(r.shape[0])
    return torch.stack((torch.zeros_like(at), at, at), dim=-1).float()


class LongCatFamily(FluxFamily):
    """LongCatImageTransformer2DModel: FLUX.1's blocks without pooled text and guidance."""

    synthetic = (("img_ids", _image_ids), ("txt_ids", _text_ids), *FluxFamily.synthetic)


def _spec(config: dict[str, Any], **own: Any) -> ModelSpec:
    path = "diffusers.models.transformers.transformer_longcat_image:LongCatImageTransformer2DModel"
    inputs = (text_input(config), TIMESTEP, *positions(IMAGE))
    return packed_spec(path, config, IMAGE, inputs, family=LongCatFamily(), **own)


LONGCAT_IMAGE = _spec(
    LONGCAT_CONFIG,
    name="longcat-image",
    title="LongCat-Image",
    hub_id="meituan-longcat/LongCat-Image",
    profile=Profile(batch=(1, 1, 2), height=(512, 1024, 1536), width=(512, 1024, 1536), tokens=(_TEXT_TOKENS,) * 3),
    parameters=6_270_668_864,
    twin="longcat-tiny",
)

LONGCAT_TINY = _spec(
    TINY_CONFIG,
    name="longcat-tiny",
    title="LongCat-Image's structure at 128 channels, for trials and tests",
    profile=Profile(batch=(1, 1, 2), height=(64, 128, 256), width=(64, 128, 256), tokens=(16, 16, 16)),
    parameters=1_793_856,
)
