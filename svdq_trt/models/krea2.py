"""Krea 2, and a small model of the same structure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from svdq_trt.base.errors import UnsupportedError
from svdq_trt.models.family import Family
from svdq_trt.models.flux import image_ids
from svdq_trt.models.packed import BATCH, IMAGE, TEXT, TIMESTEP, packed_spec, positions
from svdq_trt.models.positions import install_rotary
from svdq_trt.models.samples import Samples
from svdq_trt.models.spec import ModelSpec, Profile, TensorIO
from svdq_trt.models.special_attention import GatedAttention
from svdq_trt.models.synthetic import packed_latents, t5_text, token_grid

#: config.json of the published transformers, without diffusers' bookkeeping keys.
KREA2_CONFIG: dict[str, Any] = {
    "attention_head_dim": 128,
    "axes_dims_rope": (32, 48, 48),
    "in_channels": 64,
    "intermediate_size": 16384,
    "norm_eps": 1e-05,
    "num_attention_heads": 48,
    "num_key_value_heads": 12,
    "num_layers": 28,
    "num_layerwise_text_blocks": 2,
    "num_refiner_text_blocks": 2,
    "num_text_layers": 12,
    "rope_theta": 1000.0,
    "text_hidden_dim": 2560,
    "text_intermediate_size": 6912,
    "text_num_attention_heads": 20,
    "text_num_key_value_heads": 20,
    "timestep_embed_dim": 256,
}

#: Two blocks, and one of each kind for the text; every quantized K is a multiple of 128.
TINY_CONFIG: dict[str, Any] = KREA2_CONFIG | {
    "attention_head_dim": 64,
    "axes_dims_rope": (16, 24, 24),
    "in_channels": 16,
    "intermediate_size": 384,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_layers": 2,
    "num_layerwise_text_blocks": 1,
    "num_refiner_text_blocks": 1,
    "num_text_layers": 3,
    "text_hidden_dim": 128,
    "text_intermediate_size": 256,
    "text_num_attention_heads": 2,
    "text_num_key_value_heads": 2,
}


class Krea2Family(Family):
    """Krea2Transformer2DModel: text from several layers of its encoder, refined, then one stream with the image.

    The text's padding, which the model would mask, is left out.
    """

    processors = ((r"(transformer_blocks|text_fusion\.\w+_blocks)\.\d+\.attn", GatedAttention),)
    synthetic = (
        ("hidden_states", packed_latents),
        ("encoder_hidden_states", t5_text),
        ("timestep", lambda r: torch.full(r.shape, float(r.noise))),
        ("img_ids", lambda r: image_ids(*token_grid(r))),
    )

    def prepare(self, module: nn.Module) -> None:
        """Give attentions the names that other classes have for their sizes."""
        for part in module.modules():
            attn: Any = part
            if hasattr(attn, "num_kv_heads"):
                attn.heads, attn.kv_heads, attn.inner_dim = attn.num_heads, attn.num_kv_heads, attn.hidden_size

    def wrap(self, module: nn.Module, inputs: Sequence[str]) -> nn.Module:
        """Wrap the module as Family does, with angles in f32."""
        install_rotary(module, "rotary_emb")
        return super().wrap(module, inputs)

    def arguments(self, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Keyword arguments of the transformer, whose positions are of the text's tokens, too: zeros."""
        named = dict(inputs)
        image = named.pop("img_ids")
        return named | {"position_ids": torch.cat((image.new_zeros(named["encoder_hidden_states"].shape[1], 3), image))}

    def flatten(self, call: dict[str, Any]) -> dict[str, Any]:
        """Inputs by name: text without its padding, positions of the image.

        Raises:
            UnsupportedError: text with positions.
        """
        named = dict(call)
        mask, ids, text = (
            named.pop("encoder_attention_mask", None),
            named.pop("position_ids"),
            call["encoder_hidden_states"],
        )
        tokens = text.shape[1]
        if ids[:tokens].any():
            raise UnsupportedError("position_ids", "text that has positions", "zeros, as in Krea2Pipeline")
        if mask is not None:
            named["encoder_hidden_states"] = Samples(row[own.bool()] for row, own in zip(text, mask, strict=True))
        return named | {"img_ids": ids[tokens:]}


def _spec(config: dict[str, Any], **own: Any) -> ModelSpec:
    layers, width = config["num_text_layers"], config["text_hidden_dim"]
    text = TensorIO("encoder_hidden_states", "act", (BATCH, TEXT, layers, width))
    path = "diffusers.models.transformers.transformer_krea2:Krea2Transformer2DModel"
    return packed_spec(path, config, IMAGE, (text, TIMESTEP, positions(IMAGE)[0]), family=Krea2Family(), **own)


_SIDE = (512, 1024, 1536)
_FULL = Profile(batch=(1, 1, 2), height=_SIDE, width=_SIDE, tokens=(1, 128, 512))

KREA2_RAW = _spec(
    KREA2_CONFIG,
    name="krea2-raw",
    title="Krea 2 Raw, not distilled",
    hub_id="krea/Krea-2-Raw",
    profile=_FULL,
    parameters=12_820_073_036,
    twin="krea2-tiny",
)

KREA2_TURBO = _spec(
    KREA2_CONFIG,
    name="krea2-turbo",
    title="Krea 2 Turbo, 8 steps",
    hub_id="krea/Krea-2-Turbo",
    profile=_FULL,
    parameters=12_820_073_036,
    twin="krea2-tiny",
)

KREA2_TINY = _spec(
    TINY_CONFIG,
    name="krea2-tiny",
    title="Krea 2's structure at 256 channels, for trials and tests",
    profile=Profile(batch=(1, 1, 2), height=(64, 128, 256), width=(64, 128, 256), tokens=(8, 16, 32)),
    parameters=2_114_195,
)
