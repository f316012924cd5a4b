"""What PixArt and SANA share: blocks of self attention, cross attention and a feed-forward, modulated by one adaLN."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import nn

from svdq_trt.base.errors import UnsupportedError
from svdq_trt.contract.formats import Activation
from svdq_trt.models.fused_attention import FusedCrossAttention, FusedSelfAttention
from svdq_trt.models.patches import compute_positions
from svdq_trt.models.recipe import LinearGroup, Recipe, complete, weight_layers
from svdq_trt.models.spec import TensorIO
from svdq_trt.models.synthetic import smooth_image

_SHARED_REASONS = (
    (r"(pos_embed|patch_embed)\.proj", "first convolution: its error enters every block"),
    (r"caption_projection\..*", "text's first linears: their error enters every cross attention"),
    (r"(adaln_single|time_embed)\..*", "time embedding and modulation: one row per image, shared by every block"),
    (r"proj_out", "last linear: few features, sets the quality of the latent"),
)


class DiTFamily:
    """Rules and surgery; a model says what differs.

    Attributes:
        WRAPPED: see Family.
        reasons: further (pattern, reason) of layers that stay.
        self_attention: processor class of attn1.
        patches: attribute of the PatchEmbed that is computed in the graph; empty where it has no positions.
        flow: synthetic latents are mixed as flow matching does; else as noise prediction does.
    """

    WRAPPED = "transformer"
    reasons: ClassVar[tuple[tuple[str, str], ...]] = ()
    self_attention: ClassVar[type] = FusedSelfAttention
    patches: ClassVar[str] = ""
    flow: ClassVar[bool] = False

    def prepare(self, module: nn.Module) -> None:
        """Positions are computed in the graph."""
        if self.patches:
            compute_positions(module, self.patches)

    def block_groups(self, name: str) -> list[LinearGroup]:
        """The nodes of one transformer block, in the order they run."""
        a1, a2 = f"{name}.attn1", f"{name}.attn2"
        return [
            LinearGroup(f"{a1}.to_qkv", tuple(f"{a1}.to_{m}" for m in "qkv")),
            LinearGroup(f"{a1}.to_out.0", (f"{a1}.to_out.0",)),
            LinearGroup(f"{a2}.to_q", (f"{a2}.to_q",)),
            LinearGroup(f"{a2}.to_kv", tuple(f"{a2}.to_{m}" for m in "kv"), weight_only=True),
            LinearGroup(f"{a2}.to_out.0", (f"{a2}.to_out.0",)),
        ]

    def recipe(self, module: nn.Module, skip: Sequence[str]) -> Recipe:
        """Blocks in the order they run; every other layer gets its reason from the tables."""
        net: Any = module
        candidates = [
            g for i in range(len(net.transformer_blocks)) for g in self.block_groups(f"transformer_blocks.{i}")
        ]
        owned = {m for g in candidates for m in g.members}
        reasons = {name: self._reason(name) for name in weight_layers(module) if name not in owned}
        return complete(module, candidates, reasons, skip)

    def _reason(self, name: str) -> str:
        for pattern, reason in (*_SHARED_REASONS, *self.reasons):
            if re.fullmatch(pattern, name):
                return reason
        raise UnsupportedError(f"layer '{name}'", "no rule for it", f"a layer of {type(self).__name__}")

    def install(self, module: nn.Module, group: LinearGroup, fused: nn.Module) -> None:
        """Set `fused` at the node's name; of several linears, remove them and change the processor."""
        parent_name, _, leaf = group.node.rpartition(".")
        parent: Any = module.get_submodule(parent_name)
        if len(group.members) > 1:
            for name in group.members:
                delattr(parent, name.rpartition(".")[2])
            parent.set_processor(self.self_attention() if leaf == "to_qkv" else FusedCrossAttention())
        setattr(parent, leaf, fused)

    def wrap(self, module: nn.Module) -> nn.Module:
        """See FlatDiT."""
        net: Any = module
        for block in net.transformer_blocks:
            block.attn1.set_processor(self.self_attention())
            block.attn2.set_processor(FusedCrossAttention())
        return FlatDiT(module)

    def fill_input(
        self,
        io: TensorIO,
        shape: tuple[int, ...],
        sizes: Mapping[str, int],
        noise: float,
        rng: torch.Generator,
    ) -> torch.Tensor:
        """Synthetic inputs with the statistics the real ones have; they are no substitute for real prompts.

        hidden_states: a smooth image and noise. encoder_hidden_states: noise and some large channels.
        encoder_attention_mask: the last third of the text is padding.
        """
        if io.name == "timestep":
            return torch.full(shape, float(round(999 * noise)))
        if io.name == "encoder_attention_mask":
            mask = torch.ones(shape)
            mask[:, shape[1] - shape[1] // 3 :] = 0.0
            return mask
        value = torch.randn(shape, generator=rng)
        if io.name == "hidden_states":
            image = smooth_image(shape, rng)
            share = (noise, 1 - noise) if self.flow else (math.sqrt(noise), math.sqrt(1 - noise))
            return share[0] * value + share[1] * image
        if io.name == "encoder_hidden_states":
            fixed = torch.Generator().manual_seed(0)  # the same channels are large for every prompt
            value = value * 0.2
            value[..., torch.randperm(shape[-1], generator=fixed)[: max(shape[-1] // 256, 1)]] *= 20.0
        return value


class FlatDiT(nn.Module):
    """Transformer with positional inputs (hidden_states, encoder_hidden_states, timestep, encoder_attention_mask)."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_attention_mask: torch.Tensor,
    ) -> torch.Tensor:
        """The model's prediction for latents [B, C, height, width]; the mask [B, T] is 1 for text, 0 for padding."""
        out: torch.Tensor = self.transformer(
            hidden_states,
            encoder_hidden_states=encoder_hidden_states,
            timestep=timestep,
            encoder_attention_mask=encoder_attention_mask,
            return_dict=False,
        )[0]
        return out


def gelu_tanh_mlp(name: str) -> list[LinearGroup]:
    """The nodes of diffusers' FeedForward with GELU (tanh)."""
    ff = f"{name}.ff.net"
    return [
        LinearGroup(f"{ff}.0", (f"{ff}.0.proj",), Activation.GELU_TANH),
        LinearGroup(f"{ff}.2", (f"{ff}.2",), x_from=Activation.GELU_TANH),
    ]
