"""Qwen-Image and Qwen-Image-Edit, and small models of the same structure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from svdq_trt.base.errors import UnsupportedError
from svdq_trt.models.attention import JointAttention
from svdq_trt.models.family import Family
from svdq_trt.models.packed import IMAGE, IMAGES, TIMESTEP, packed_spec, positions, text_input
from svdq_trt.models.positions import install_rotary
from svdq_trt.models.samples import Samples
from svdq_trt.models.spec import ModelSpec, Profile
from svdq_trt.models.synthetic import packed_latents, t5_text, token_grid

#: config.json of the published transformers, without diffusers' bookkeeping keys.
QWEN_CONFIG: dict[str, Any] = {
    "attention_head_dim": 128,
    "axes_dims_rope": (16, 56, 56),
    "guidance_embeds": False,
    "in_channels": 64,
    "joint_attention_dim": 3584,
    "num_attention_heads": 24,
    "num_layers": 60,
    "out_channels": 16,
    "patch_size": 2,
}
#: the tokens of references are modulated as those of a clean image
EDIT_CONFIG: dict[str, Any] = QWEN_CONFIG | {"zero_cond_t": True}

#: A block, and the last one, whose text stream ends; every quantized K is a multiple of 128.
TINY_CONFIG: dict[str, Any] = QWEN_CONFIG | {
    "attention_head_dim": 64,
    "axes_dims_rope": (8, 28, 28),
    "in_channels": 16,
    "joint_attention_dim": 96,
    "num_attention_heads": 2,
    "num_layers": 2,
    "out_channels": 4,
}
EDIT_TINY_CONFIG: dict[str, Any] = TINY_CONFIG | {"zero_cond_t": True}


def image_ids(shapes: Sequence[Sequence[int]]) -> Tensor:
    """[tokens, 3] f32: image, row and column of each token of images with `shapes` (frames, rows, columns).

    Rows and columns count from the middle. Frames count from the image's number.
    """
    parts = []
    for index, (frames, rows, columns) in enumerate(shapes):
        axes = ((index, frames), (rows // 2 - rows, rows), (columns // 2 - columns, columns))
        grid = torch.meshgrid(*(torch.arange(start, start + count) for start, count in axes), indexing="ij")
        parts.append(torch.stack(grid, dim=-1).reshape(-1, 3))
    return torch.cat(parts).float()


def text_ids(shapes: Sequence[Sequence[int]], tokens: int) -> Tensor:
    """[tokens, 3] f32: positions of text, behind those of the largest of the images."""
    start = max(side // 2 for _, *sides in shapes for side in sides)
    return torch.arange(start, start + tokens)[:, None].expand(-1, 3).float()


def _forward(
    model: Any,
    hidden_states: Tensor,
    encoder_hidden_states: Tensor,
    timestep: Tensor,
    img_ids: Tensor,
    txt_ids: Tensor,
    return_dict: bool,
) -> tuple[Tensor]:
    """QwenImageTransformer2DModel.forward, with positions as tensors and without padding."""
    image, text = model.img_in(hidden_states), model.txt_in(model.txt_norm(encoder_hidden_states))
    timestep, reference = timestep.to(image.dtype), None
    both = temb = model.time_text_embed(timestep, image)
    if model.zero_cond_t:
        both = torch.stack((temb, model.time_text_embed(torch.zeros_like(timestep), image)), dim=1)
        reference = (img_ids[:, 0] > 0)[None, :, None]
    rotary = model.pos_embed(torch.cat((txt_ids, img_ids)))
    for block in model.transformer_blocks:
        text, image = block(image, text, None, both, rotary, modulate_index=reference)
    return (model.proj_out(model.norm_out(image, temb)),)


def _modulate(x: Tensor, parameters: Tensor, reference: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """QwenImageTransformerBlock._modulate for tokens of the new image and of references.

    Their `parameters` are beside each other, [B, 2, 3C], where diffusers doubles the batch: torch.export would take a
    half of twice the batch for more than one.

    Args:
        reference: [1, L, 1], whether a token is of a reference; None: none is.
    """
    shift, scale, gate = (
        value[:, :1] if reference is None else torch.where(reference, value[:, 1:], value[:, :1])
        for value in parameters.chunk(3, dim=-1)
    )
    return x * (1 + scale) + shift, gate


class QwenImageFamily(Family):
    """QwenImageTransformer2DModel: two streams with one attention over both, modulated by adaLN."""

    processors = ((r"transformer_blocks\.\d+\.attn", JointAttention),)
    synthetic = (
        ("hidden_states", packed_latents),
        ("encoder_hidden_states", t5_text),
        ("timestep", lambda r: torch.full(r.shape, float(r.noise))),
        ("img_ids", lambda r: image_ids([(1, *token_grid(r))] * r.sizes["images"])),
        ("txt_ids", lambda r: text_ids([(1, *token_grid(r))], r.shape[0])),
    )
    forward = staticmethod(_forward)

    def wrap(self, module: nn.Module, inputs: Sequence[str]) -> nn.Module:
        """Wrap the module as Family does, with positions as inputs and angles in f32."""
        net: Any = module
        install_rotary(net, "pos_embed")
        for block in net.transformer_blocks if net.zero_cond_t else ():
            block.zero_cond_t, block._modulate = False, _modulate
        return super().wrap(module, inputs)

    def arguments(self, inputs: dict[str, Tensor]) -> dict[str, Any]:
        """Arguments of the diffusers module: shapes of the images instead of positions."""
        rest = {name: value for name, value in inputs.items() if not name.endswith("_ids")}
        images = inputs["img_ids"].long().split(inputs["img_ids"][:, 0].unique(return_counts=True)[1].tolist())
        shapes = [(1, len(ids[:, 1].unique()), len(ids[:, 2].unique())) for ids in images]
        return rest | {"img_shapes": [shapes] * len(rest["hidden_states"])}

    def flatten(self, call: dict[str, Any]) -> dict[str, Any]:
        """Positions of the images' and the text's tokens instead of shapes; text without its padding."""
        text, mask = call["encoder_hidden_states"], call.pop("encoder_hidden_states_mask", None)
        shapes = _one_of_all(call.pop("img_shapes"))
        lengths = [text.shape[1]] * len(text) if mask is None else _lengths(mask)
        return call | {
            "encoder_hidden_states": Samples(row[:count] for row, count in zip(text, lengths, strict=True)),
            "img_ids": image_ids(shapes).to(text.device),
            "txt_ids": Samples(text_ids(shapes, count).to(text.device) for count in lengths),
        }


def _one_of_all(img_shapes: Sequence[Any]) -> Sequence[Sequence[int]]:
    """Shapes of the images in each sample's sequence, which diffusers takes from the first."""
    first = img_shapes[0]
    if any(other != first for other in img_shapes):
        raise UnsupportedError("img_shapes", "samples with images of other shapes", "the same for all")
    return first if isinstance(first, list) else [first]


def _lengths(mask: Tensor) -> list[int]:
    """Tokens of each sample's text [B, T], which padding follows."""
    lengths = mask.bool().sum(1)
    if not torch.equal(mask.bool(), torch.arange(mask.shape[1], device=mask.device) < lengths[:, None]):
        raise UnsupportedError("encoder_hidden_states_mask", "padding in the text", "padding behind it")
    found: list[int] = lengths.tolist()
    return found


def _spec(config: dict[str, Any], references: bool = False, **own: Any) -> ModelSpec:
    image = IMAGES if references else IMAGE
    return packed_spec(
        "diffusers.models.transformers.transformer_qwenimage:QwenImageTransformer2DModel",
        config,
        image,
        (text_input(config), TIMESTEP, *positions(image)),
        family=QwenImageFamily(),
        guidance="true_cfg_scale",
        asked=MappingProxyType({"negative_prompt": " "}),  # without one there is no guidance
        **own,
    )


_SIDES = (512, 1328, 1664)
_FULL = Profile(batch=(1, 1, 2), height=_SIDES, width=_SIDES, tokens=(1, 128, 1024))

QWEN_IMAGE, QWEN_IMAGE_2512 = (
    _spec(
        QWEN_CONFIG,
        name=f"qwen-image{suffix}",
        title=f"Qwen-Image{suffix}",
        hub_id=f"Qwen/Qwen-Image{suffix}",
        profile=_FULL,
        parameters=20_430_401_088,
        twin="qwen-image-tiny",
    )
    for suffix in ("", "-2512")
)

#: Its text holds some 200 tokens for each reference, which is scaled to a million pixels.
QWEN_IMAGE_EDIT = _spec(
    EDIT_CONFIG,
    references=True,
    name="qwen-image-edit-2511",
    title="Qwen-Image-Edit-2511: edits up to three reference images",
    hub_id="Qwen/Qwen-Image-Edit-2511",
    pictures=("image",),
    profile=replace(_FULL, height=(512, 1024, 1536), width=(512, 1024, 1536), tokens=(1, 256, 1024), images=(1, 2, 4)),
    parameters=20_430_401_088,
    twin="qwen-image-edit-tiny",
)

_SMALL = Profile(batch=(1, 1, 2), height=(64, 128, 256), width=(64, 128, 256), tokens=(1, 16, 48))

QWEN_IMAGE_TINY = _spec(
    TINY_CONFIG,
    name="qwen-image-tiny",
    title="Qwen-Image's structure at 128 channels, for trials and tests",
    profile=_SMALL,
    parameters=1_287_024,
)

QWEN_IMAGE_EDIT_TINY = _spec(
    EDIT_TINY_CONFIG,
    references=True,
    name="qwen-image-edit-tiny",
    title="Qwen-Image-Edit's structure at 128 channels, for trials and tests",
    pictures=("image",),
    profile=replace(_SMALL, images=(1, 2, 3)),
    parameters=1_287_024,
)
