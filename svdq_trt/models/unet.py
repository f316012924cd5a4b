"""The family of diffusers' UNet2DConditionModel with text_time conditioning (SDXL and its kin)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from svdq_trt.base.errors import UnsupportedError
from svdq_trt.contract.formats import Activation
from svdq_trt.models.fused_attention import FusedCrossAttention, FusedSelfAttention, SharedProjection
from svdq_trt.models.recipe import LinearGroup, Recipe, complete, weight_layers
from svdq_trt.models.spec import TensorIO
from svdq_trt.models.synthetic import smooth_image

#: Why a layer that no transformer block owns stays in 16 bit. First match wins; every layer must match one.
_REASONS = (
    (r"conv_in|conv_out", "first or last convolution: few channels, sets the quality of the latent"),
    (
        r"(time_embedding|add_embedding)\..*",
        "time and text embedding: one row per image, read by every block",
    ),
    (r".*\.time_emb_proj", "residual block's time projection: one row per image"),
    (r".*\.resnets\.\d+\.(conv1|conv2)", "residual block's convolution: no 4-bit convolution kernel"),
    (r".*\.resnets\.\d+\.conv_shortcut", "residual block's shortcut: its error enters the residual stream"),
    (r".*\.(downsamplers|upsamplers)\.\d+\.conv", "down- or upsampling: no 4-bit convolution kernel"),
    (r".*\.(proj_in|proj_out)", "transformer's in/out projection: its error enters the residual stream"),
)

#: Blocks whose cross-attention keys and values share a node. SDXL's have 1, 2 or 10 blocks in a row. More would leave
#: little of R_MAX for a LoRA on each of them.
KV_BLOCKS = 5


class UNetFamily:
    """Rules and surgery for UNet2DConditionModel."""

    WRAPPED = "unet"

    def prepare(self, module: nn.Module) -> None:
        """Nothing to change."""

    def recipe(self, module: nn.Module, skip: Sequence[str]) -> Recipe:
        """One pass over the transformers; every layer outside their blocks gets its reason from the table above."""
        from diffusers.models.transformers.transformer_2d import Transformer2DModel

        candidates: list[LinearGroup] = []
        for name, transformer in module.named_modules():
            if isinstance(transformer, Transformer2DModel):
                candidates += _transformer_groups(name, transformer)
        owned = {m for g in candidates for m in g.members}
        reasons = {name: _reason(name) for name in weight_layers(module) if name not in owned}
        return complete(module, candidates, reasons, skip)

    def install(self, module: nn.Module, group: LinearGroup, fused: nn.Module) -> None:
        """Set `fused` at the node's name; of several linears, remove them and change the processor."""
        parent_name, _, leaf = group.node.rpartition(".")
        parent: Any = module.get_submodule(parent_name)
        if len(group.members) > 1:
            readers: dict[str, Any] = {}
            for name in group.members:
                owner, _, member = name.rpartition(".")
                readers[owner] = module.get_submodule(owner)
                delattr(readers[owner], member)
            shared = SharedProjection(len(readers))
            for index, attn in enumerate(readers.values()):
                attn.set_processor(FusedSelfAttention() if leaf == "to_qkv" else FusedCrossAttention(shared, index))
        setattr(parent, leaf, fused)

    def wrap(self, module: nn.Module) -> nn.Module:
        """See FlatUNet."""
        return FlatUNet(module)

    def fill_input(
        self,
        io: TensorIO,
        shape: tuple[int, ...],
        sizes: Mapping[str, int],
        noise: float,
        rng: torch.Generator,
    ) -> torch.Tensor:
        """Synthetic inputs with the statistics the real ones have; they are no substitute for real prompts.

        sample: a smooth image plus noise, scaled to unit variance as the schedulers do. time_ids: the size.
        encoder_hidden_states: as CLIP's last but one layer: noise, some large channels, a large first token.
        """
        if io.name == "timestep":
            return torch.full(shape, float(round(999 * noise)))
        if io.name == "time_ids":  # original height and width, crop top and left, target height and width
            row = [sizes["height"], sizes["width"], 0, 0, sizes["height"], sizes["width"]]
            return torch.tensor(row, dtype=torch.float32).expand(shape).clone()
        value = torch.randn(shape, generator=rng)
        if io.name == "sample":
            image = smooth_image(shape, rng)
            return math.sqrt(noise) * value + math.sqrt(1 - noise) * image
        if io.name == "encoder_hidden_states":
            fixed = torch.Generator().manual_seed(0)  # the same channels are large for every prompt
            channels = torch.randperm(shape[-1], generator=fixed)[: max(shape[-1] // 256, 1)]
            value[..., channels] *= 8.0
            value[:, 0, channels] += 20.0
        return value


class FlatUNet(nn.Module):
    """UNet with positional inputs (sample, timestep, encoder_hidden_states, text_embeds, time_ids)."""

    def __init__(self, unet: nn.Module) -> None:
        super().__init__()
        self.unet = unet

    def forward(
        self,
        sample: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        text_embeds: torch.Tensor,
        time_ids: torch.Tensor,
    ) -> torch.Tensor:
        """Predicted noise, in the shape and dtype of `sample`.

        text_embeds is f32 because diffusers concatenates it with sinusoids it computes in f32, and a strongly
        typed network takes no Concat of two dtypes; the cast here is for callers that pass 16 bit.
        """
        added = {"text_embeds": text_embeds.float(), "time_ids": time_ids.float()}
        out: torch.Tensor = self.unet(
            sample, timestep, encoder_hidden_states, added_cond_kwargs=added, return_dict=False
        )[0]
        return out


def _reason(name: str) -> str:
    for pattern, reason in _REASONS:
        if re.fullmatch(pattern, name):
            return reason
    raise UnsupportedError(f"layer '{name}'", "no rule for it", "a layer of the SDXL family")


def _transformer_groups(name: str, transformer: Any) -> list[LinearGroup]:
    """The nodes of one transformer, in the order they run.

    All blocks read the same text, so KV_BLOCKS of them have their keys and values in one node, with as much rank as
    nodes of their own would have together.
    """
    names = [f"{name}.transformer_blocks.{i}" for i in range(len(transformer.transformer_blocks))]
    groups: list[LinearGroup] = []
    for i, (own, block) in enumerate(zip(names, transformer.transformer_blocks, strict=True)):
        nodes = _block_groups(own, block)
        if i % KV_BLOCKS == 0:
            readers = names[i : i + KV_BLOCKS]
            members = tuple(f"{reader}.attn2.{m}" for reader in readers for m in ("to_k", "to_v"))
            node = LinearGroup(f"{own}.attn2.to_kv", members, weight_only=True, rank_factor=len(readers))
            nodes.insert(3, node)  # behind to_q
        groups += nodes
    return groups


def _block_groups(name: str, block: Any) -> list[LinearGroup]:
    """The nodes of one transformer block, in the order they run, less cross attention's keys and values."""
    if block.norm_type != "layer_norm" or block.attn2 is None or block.only_cross_attention:
        raise UnsupportedError(f"block '{name}'", f"norm type {block.norm_type}", "self and cross attention, MLP")
    for leaf in ("attn1", "attn2"):
        _check_plain(f"{name}.{leaf}", getattr(block, leaf))
    if type(block.ff.net[0]).__name__ != "GEGLU":
        raise UnsupportedError(f"'{name}.ff'", type(block.ff.net[0]).__name__, "GEGLU")
    a1, a2, ff = f"{name}.attn1", f"{name}.attn2", f"{name}.ff.net"
    return [
        LinearGroup(f"{a1}.to_qkv", tuple(f"{a1}.{m}" for m in ("to_q", "to_k", "to_v")), source=f"{name}.norm1"),
        LinearGroup(f"{a1}.to_out.0", (f"{a1}.to_out.0",)),
        LinearGroup(f"{a2}.to_q", (f"{a2}.to_q",), source=f"{name}.norm2"),
        LinearGroup(f"{a2}.to_out.0", (f"{a2}.to_out.0",)),
        LinearGroup(f"{ff}.0", (f"{ff}.0.proj",), Activation.GEGLU, source=f"{name}.norm3"),
        LinearGroup(f"{ff}.2", (f"{ff}.2",)),
    ]


def _check_plain(name: str, attn: Any) -> None:
    """The fused processors leave out what SDXL's attention doesn't have; refuse a model that has it."""
    norms = ("spatial_norm", "group_norm", "norm_q", "norm_k", "norm_cross")
    for extra in (*norms, "add_k_proj", "residual_connection"):
        if getattr(attn, extra, None):
            raise UnsupportedError(f"attention '{name}'", f"has {extra}", "plain attention")
    if attn.rescale_output_factor != 1.0:
        raise UnsupportedError(f"attention '{name}'", "rescales its output", "plain attention")
