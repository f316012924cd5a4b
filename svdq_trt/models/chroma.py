"""Chroma: FLUX.1's blocks, modulated by one small network for all of them; and a small model of the same structure."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from svdq_trt.base.errors import UnsupportedError
from svdq_trt.models.flux import FluxFamily
from svdq_trt.models.packed import BATCH, IMAGE, TEXT, TIMESTEP, packed_spec, positions, text_input
from svdq_trt.models.spec import ModelSpec, Profile, TensorIO
from svdq_trt.models.special_attention import BiasedJointAttention
from svdq_trt.models.synthetic import padding_mask

#: config.json of the published transformer, without diffusers' bookkeeping keys.
CHROMA_CONFIG: dict[str, Any] = {
    "approximator_hidden_dim": 5120,
    "approximator_layers": 5,
    "approximator_num_channels": 64,
    "attention_head_dim": 128,
    "axes_dims_rope": (16, 56, 56),
    "in_channels": 64,
    "joint_attention_dim": 4096,
    "num_attention_heads": 24,
    "num_layers": 19,
    "num_single_layers": 38,
    "out_channels": None,
    "patch_size": 1,
}

#: Two blocks of each kind; every quantized K is 128 or 512.
TINY_CONFIG: dict[str, Any] = CHROMA_CONFIG | {
    "approximator_hidden_dim": 96,
    "approximator_layers": 2,
    "attention_head_dim": 64,
    "axes_dims_rope": (8, 28, 28),
    "in_channels": 16,
    "joint_attention_dim": 96,
    "num_attention_heads": 2,
    "num_layers": 2,
    "num_single_layers": 2,
}


class ModulationInput(nn.Module):
    """Replaces ChromaCombinedTimestepTextProjEmbeddings: the same waves, without a table or a list of the batch's size.

    Args:
        embed: the module that it replaces.
    """

    def __init__(self, embed: Any) -> None:
        super().__init__()
        self.count, channels = embed.mod_proj.shape
        self.time_proj = embed.time_proj
        self.index_proj = type(embed.time_proj)(channels, flip_sin_to_cos=True, downscale_freq_shift=0)

    def forward(self, timestep: torch.Tensor) -> torch.Tensor:
        """[B] -> [B, modulations, K]: waves of the timestep, of a guidance of 0, and of each modulation's index."""
        time = torch.cat([self.time_proj(timestep), self.time_proj(torch.zeros_like(timestep))], dim=1)
        index = self.index_proj(1000 * torch.arange(self.count, device=timestep.device))
        both = (time[:, None].expand(-1, self.count, -1), index.expand(time.shape[0], -1, -1))
        return torch.cat(both, dim=-1).to(timestep.dtype)


class ChromaFamily(FluxFamily):
    """ChromaTransformer2DModel: FLUX.1's blocks without adaLN linears.

    The pipeline's mask is a number that is added to the logits of two tokens: 1 where both are text or image, else 0.
    """

    processors = ((r"(single_)?transformer_blocks\.\d+\.attn", BiasedJointAttention),)
    synthetic = (("text_mask", padding_mask), *FluxFamily.synthetic)

    def prepare(self, module: Any) -> None:
        """Compute the waves of the modulations' indices in the graph."""
        module.time_text_embed = ModulationInput(module.time_text_embed)

    def arguments(self, inputs: dict[str, torch.Tensor]) -> dict[str, Any]:
        """Keyword arguments of the transformer, whose mask is of the image's tokens, too."""
        named = dict(inputs)
        mask, image = named.pop("text_mask"), inputs["hidden_states"]
        return named | {"attention_mask": torch.cat((mask, image.new_ones(image.shape[:2])), dim=1)}

    def flatten(self, call: dict[str, Any]) -> dict[str, Any]:
        """Inputs by name: of the mask the text's part; 1 for all of it without one.

        Raises:
            UnsupportedError: a mask of another kind than the pipeline's.
        """
        named = dict(call)
        mask, text = named.pop("attention_mask", None), call["encoder_hidden_states"]
        if mask is None:
            return named | {"text_mask": text.new_ones(text.shape[:2])}
        if not mask.is_floating_point() or not (mask[:, text.shape[1] :] == 1).all():
            got = f"{mask.dtype} or with a token of the image masked"
            raise UnsupportedError(
                "attention_mask", got, "numbers, 1 for each of the image's tokens, as in ChromaPipeline"
            )
        return named | {"text_mask": mask[:, : text.shape[1]]}


def _spec(config: dict[str, Any], **own: Any) -> ModelSpec:
    mask = TensorIO("text_mask", "act", (BATCH, TEXT))
    path = "diffusers.models.transformers.transformer_chroma:ChromaTransformer2DModel"
    inputs = (text_input(config), TIMESTEP, *positions(IMAGE), mask)
    return packed_spec(path, config, IMAGE, inputs, family=ChromaFamily(), **own)


CHROMA = _spec(
    CHROMA_CONFIG,
    name="chroma1-hd",
    title="Chroma1-HD",
    hub_id="lodestones/Chroma1-HD",
    profile=Profile(batch=(1, 1, 2), height=(512, 1024, 1536), width=(512, 1024, 1536), tokens=(512, 512, 512)),
    parameters=8_899_983_424,
    twin="chroma-tiny",
)

CHROMA_TINY = _spec(
    TINY_CONFIG,
    name="chroma-tiny",
    title="Chroma's structure at 128 channels, for trials and tests",
    profile=Profile(batch=(1, 1, 2), height=(64, 128, 256), width=(64, 128, 256), tokens=(16, 16, 16)),
    parameters=1_259_824,
)
