"""Z-Image-Turbo, and a small model of the same structure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from svdq_trt.base.errors import UnsupportedError
from svdq_trt.models.attention import JointAttention
from svdq_trt.models.family import Family
from svdq_trt.models.positions import install_rotary
from svdq_trt.models.samples import Samples
from svdq_trt.models.spec import Axis, ModelSpec, Profile, TensorIO
from svdq_trt.models.synthetic import flow_latents, padding_mask, t5_text

#: config.json of the published transformer, without diffusers' bookkeeping keys.
TURBO_CONFIG: dict[str, Any] = {
    "all_f_patch_size": (1,),
    "all_patch_size": (2,),
    "axes_dims": (32, 48, 48),
    "axes_lens": (1536, 512, 512),
    "cap_feat_dim": 2560,
    "dim": 3840,
    "in_channels": 16,
    "n_heads": 30,
    "n_kv_heads": 30,
    "n_layers": 30,
    "n_refiner_layers": 2,
    "norm_eps": 1e-05,
    "qk_norm": True,
    "rope_theta": 256.0,
    "t_scale": 1000.0,
}

#: A block of each of the three kinds; 384 channels make the MLP's 8/3 a multiple of 128.
TINY_CONFIG: dict[str, Any] = TURBO_CONFIG | {
    "cap_feat_dim": 96,
    "dim": 384,
    "in_channels": 4,
    "n_heads": 3,
    "n_kv_heads": 3,
    "n_layers": 1,
    "n_refiner_layers": 1,
}

_MULTIPLE = 32  # of the tokens of an image and of a text; the model fills up with tokens of its own
_PATCH = 2  # latent pixels per side of one token


def _forward(model: Any, x: Tensor, t: Tensor, cap_feats: Tensor, cap_mask: Tensor, return_dict: bool) -> tuple[Tensor]:
    """ZImageTransformer2DModel.forward for one batch tensor instead of lists.

    Args:
        x: latents [B, C, 1, height, width]. t: [B], 1 is a clean image.
        cap_feats: text [B, T, K], T a multiple of 32. cap_mask: [B, T], 1 for text, 0 for what the model fills up.
    """
    batch, channels, _, height, width = x.shape
    rows, columns = height // _PATCH, width // _PATCH
    patches = x.reshape(batch, channels, rows, _PATCH, columns, _PATCH).permute(0, 2, 4, 3, 5, 1)
    image = model.all_x_embedder["2-1"](patches.flatten(3).flatten(1, 2))
    image = _filled_up(image, model.x_pad_token.to(image.dtype).expand(batch, -1, -1))
    text = torch.where(cap_mask[..., None] > 0, model.cap_embedder(cap_feats), model.cap_pad_token.to(x.dtype))
    time = model.t_embedder.timestep_embedding(t * model.t_scale, model.t_embedder.frequency_embedding_size)
    temb = model.t_embedder.mlp(time.to(x.dtype))
    tokens = text.shape[1]
    of_image = model.rope_embedder(_positions(rows, columns, tokens, x.device))
    of_text = model.rope_embedder(_text_positions(tokens, x.device))
    for layer in model.noise_refiner:
        image = layer(image, None, of_image, temb)
    for layer in model.context_refiner:
        text = layer(text, None, of_text)
    both = torch.cat((image, text), dim=1)
    rotary = (torch.cat((of_image[0], of_text[0])), torch.cat((of_image[1], of_text[1])), of_image[2])
    for layer in model.layers:
        both = layer(both, None, rotary, temb)
    out = model.all_final_layer["2-1"](both, c=temb)[:, : rows * columns]
    out = out.reshape(batch, rows, columns, _PATCH, _PATCH, channels).permute(0, 5, 1, 3, 2, 4)
    return (out.reshape(batch, channels, 1, height, width),)


def _filled_up(x: Tensor, row: Tensor) -> Tensor:
    """[B, L, C] and a `row` [B, 1, C] that is repeated behind it up to a multiple of 32 rows.

    By cutting off what is too much, as torch.export takes no tensor that is empty at some sizes.
    """
    whole = (x.shape[1] + _MULTIPLE - 1) // _MULTIPLE * _MULTIPLE
    return torch.cat((x, row.expand(-1, _MULTIPLE - 1, -1)), dim=1)[:, :whole]


def _text_positions(tokens: int, device: torch.device) -> Tensor:
    """[tokens, 3] f32: 1, 2, 3 ... on the first axis."""
    return F.pad(torch.arange(1, tokens + 1, dtype=torch.float32, device=device)[:, None], (0, 2))


def _positions(rows: int, columns: int, tokens: int, device: torch.device) -> Tensor:
    """[image tokens, 3] f32: the place behind the text, row and column; zeros for what is filled up."""
    row = torch.arange(rows, dtype=torch.float32, device=device)[:, None].expand(-1, columns)
    column = torch.arange(columns, dtype=torch.float32, device=device)[None].expand(rows, -1)
    grid = torch.stack((torch.full_like(row, tokens + 1), row, column), dim=-1).flatten(0, 1)
    return _filled_up(grid[None], grid.new_zeros(1, 1, 3))[0]


class ZImageFamily(Family):
    """ZImageTransformer2DModel: image and text refined apart, then one stream, with norms around everything."""

    processors = ((r"(noise_refiner|context_refiner|layers)\.\d+\.attention", JointAttention),)
    synthetic = (
        ("x", lambda r: flow_latents(replace(r, shape=(*r.shape[:2], *r.shape[3:]))).unsqueeze(2)),
        ("t", lambda r: torch.full(r.shape, 1.0 - r.noise)),
        ("cap_feats", lambda r: t5_text(r) * padding_mask(replace(r, shape=r.shape[:2]))[..., None]),
        ("cap_mask", padding_mask),
    )
    forward = staticmethod(_forward)
    timestep = "t"

    def wrap(self, module: nn.Module, inputs: Sequence[str]) -> nn.Module:
        """Wrap the module as Family does, for one batch tensor and with angles in f32."""
        install_rotary(module, "rope_embedder", "axes_dims")
        return super().wrap(module, inputs)

    def arguments(self, inputs: dict[str, Tensor]) -> dict[str, Any]:
        """Arguments of the diffusers module: lists of images and of texts without their padding."""
        lengths = inputs["cap_mask"].sum(1).long().tolist()
        texts = [text[:count] for text, count in zip(inputs["cap_feats"], lengths, strict=True)]
        return {"x": list(inputs["x"]), "t": inputs["t"], "cap_feats": texts}

    def flatten(self, call: dict[str, Any]) -> dict[str, Any]:
        """Lists of images and of texts as tensors, texts with zeros up to a multiple of 32 tokens and their mask."""
        images, texts = call["x"], call["cap_feats"]
        if any(isinstance(one, list) or one.shape != images[0].shape for one in images):
            raise UnsupportedError("x", "images of several sizes, or several of one sample", "one size for all")
        free = [-len(text) % _MULTIPLE for text in texts]
        return call | {
            "x": torch.stack(tuple(images)),
            "cap_feats": Samples(F.pad(text, (0, 0, 0, more)) for text, more in zip(texts, free, strict=True)),
            "cap_mask": Samples(
                F.pad(torch.ones(len(text), device=text.device), (0, more))
                for text, more in zip(texts, free, strict=True)
            ),
        }


def _spec(config: dict[str, Any], **own: Any) -> ModelSpec:
    batch, text = Axis("batch"), Axis("tokens", multiple=_MULTIPLE)
    height, width = Axis("height", divisor=8, multiple=_PATCH), Axis("width", divisor=8, multiple=_PATCH)
    latents = (batch, config["in_channels"], 1, height, width)
    return ModelSpec(
        class_path="diffusers.models.transformers.transformer_z_image:ZImageTransformer2DModel",
        config=MappingProxyType(config),
        act_dtype="bfloat16",  # in float16 the residual stream overflows
        pixel_multiple=8 * _PATCH,
        calibration_pixels=256,
        inputs=(
            TensorIO("x", "act", latents),
            TensorIO("t", "float32", (batch,)),
            TensorIO("cap_feats", "act", (batch, text, config["cap_feat_dim"])),
            TensorIO("cap_mask", "float32", (batch, text)),
        ),
        outputs=(TensorIO("out_x", "act", latents),),
        family=ZImageFamily(),
        **own,
    )


Z_IMAGE_TURBO = _spec(
    TURBO_CONFIG,
    name="z-image-turbo",
    asked=MappingProxyType({"guidance_scale": 0.0}),  # it is distilled
    title="Z-Image-Turbo",
    hub_id="Tongyi-MAI/Z-Image-Turbo",
    profile=Profile(batch=(1, 1, 2), height=(512, 1024, 1536), width=(512, 1024, 1536), tokens=(32, 128, 512)),
    parameters=6_154_908_736,
    twin="z-image-tiny",
)

Z_IMAGE_TINY = _spec(
    TINY_CONFIG,
    name="z-image-tiny",
    title="Z-Image's structure at 384 channels, for trials and tests",
    profile=Profile(batch=(1, 1, 2), height=(64, 128, 256), width=(64, 128, 256), tokens=(32, 32, 96)),
    parameters=6_778_352,
)
