"""The family of diffusers' FluxTransformer2DModel: two-stream and one-stream blocks, modulated by adaLN."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any

import torch
from torch import nn

from svdq_trt.base.errors import UnsupportedError
from svdq_trt.contract.formats import Activation
from svdq_trt.models.joint_attention import JointAttention, RotaryTable, SplitProjection, single_block_forward
from svdq_trt.models.recipe import LinearGroup, Recipe, complete, weight_layers
from svdq_trt.models.spec import TensorIO

#: Why a layer outside the blocks stays in 16 bit.
_REASONS = (
    (r"x_embedder|context_embedder", "first linear of a stream: its error enters every block"),
    (r"time_text_embed\..*", "time, guidance and text embedding: one row per image, read by every block"),
    (r"proj_out", "last linear: few features, sets the quality of the latent"),
)
_PATCH = 16  # pixels a side of one token: 8 of the VAE, 2 of the packing


class FluxFamily:
    """Rules and surgery for FluxTransformer2DModel."""

    WRAPPED = "transformer"

    def prepare(self, module: nn.Module) -> None:
        """Nothing to change."""

    def recipe(self, module: nn.Module, skip: Sequence[str]) -> Recipe:
        """Blocks in the order they run; every other layer gets its reason from the table above."""
        net: Any = module
        candidates: list[LinearGroup] = []
        for i in range(len(net.transformer_blocks)):
            candidates += double_block(f"transformer_blocks.{i}")
        for i, block in enumerate(net.single_transformer_blocks):
            candidates += _single_block(f"single_transformer_blocks.{i}", block)
        candidates.append(LinearGroup("norm_out.linear", ("norm_out.linear",), weight_only=True))
        owned = {m for g in candidates for m in g.members}
        reasons = {name: _reason(name) for name in weight_layers(module) if name not in owned}
        return complete(module, candidates, reasons, skip)

    def install(self, module: nn.Module, group: LinearGroup, fused: nn.Module) -> None:
        """Set `fused` at the node's name; what it replaces beyond that goes."""
        parent_name, _, leaf = group.node.rpartition(".")
        if group.columns is not None:
            block: Any = module.get_submodule(parent_name.rpartition(".")[0])
            if not isinstance(block.proj_out, SplitProjection):
                block.proj_out = SplitProjection(block.proj_out, block.proj_out.in_features - block.mlp_hidden_dim)
                block.forward = MethodType(single_block_forward, block)
        parent: Any = module.get_submodule(parent_name)
        if len(group.members) > 1:
            for name in group.members:
                delattr(parent, name.rpartition(".")[2])
            parent.set_processor(JointAttention())
        if leaf == "proj_mlp":
            parent.act_mlp = nn.Identity()
        setattr(parent, leaf, fused)

    def wrap(self, module: nn.Module) -> nn.Module:
        """See FlatFlux."""
        return FlatFlux(module)

    def fill_input(
        self,
        io: TensorIO,
        shape: tuple[int, ...],
        sizes: Mapping[str, int],
        noise: float,
        rng: torch.Generator,
    ) -> torch.Tensor:
        """Synthetic inputs with the statistics the real ones have; they are no substitute for real prompts.

        hidden_states: a smooth image and noise, mixed as flow matching does. encoder_hidden_states: as T5's output:
        small noise and some large channels. img_ids: row and column of each token. timestep: in [0, 1].
        """
        if io.name == "timestep":
            return torch.full(shape, float(noise))
        if io.name == "guidance":
            return torch.full(shape, 3.5)
        rows, columns = sizes["height"] // _PATCH, sizes["width"] // _PATCH
        if io.name == "txt_ids":
            return torch.zeros(shape)
        if io.name == "img_ids":
            return image_ids(rows, columns)
        value = torch.randn(shape, generator=rng)
        if io.name == "hidden_states":
            b, _, c = shape
            coarse = torch.randn((b, c, max(rows // 4, 1), max(columns // 4, 1)), generator=rng)
            image = nn.functional.interpolate(coarse, size=(rows, columns), mode="bilinear").flatten(2).transpose(1, 2)
            return noise * value + (1 - noise) * image
        if io.name == "encoder_hidden_states":
            fixed = torch.Generator().manual_seed(0)  # the same channels are large for every prompt
            value = value * 0.2
            value[..., torch.randperm(shape[-1], generator=fixed)[: max(shape[-1] // 256, 1)]] *= 20.0
        return value


def image_ids(rows: int, columns: int) -> torch.Tensor:
    """[rows * columns, 3] f32: 0, row, column, as diffusers' pipelines give them."""
    grid = torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij")
    return torch.stack((torch.zeros_like(grid[0]), *grid), dim=-1).reshape(-1, 3).float()


class FlatFlux(nn.Module):
    """Transformer with positional inputs, in the order of the spec; `guidance` where the model has it."""

    def __init__(self, transformer: nn.Module) -> None:
        super().__init__()
        self.transformer = transformer
        net: Any = transformer
        if not isinstance(net.pos_embed, RotaryTable):
            net.pos_embed = RotaryTable(net.pos_embed.theta, tuple(net.pos_embed.axes_dim))
        for block in (*net.transformer_blocks, *net.single_transformer_blocks):
            block.attn.set_processor(JointAttention())

    def forward(
        self,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        pooled_projections: torch.Tensor,
        timestep: torch.Tensor,
        img_ids: torch.Tensor,
        txt_ids: torch.Tensor,
        guidance: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Predicted velocity, in the shape and dtype of `hidden_states`."""
        out: torch.Tensor = self.transformer(
            hidden_states,
            encoder_hidden_states,
            pooled_projections,
            timestep,
            img_ids,
            txt_ids,
            guidance,
            return_dict=False,
        )[0]
        return out


def _reason(name: str) -> str:
    for pattern, reason in _REASONS:
        if re.fullmatch(pattern, name):
            return reason
    raise UnsupportedError(f"layer '{name}'", "no rule for it", "a layer of the FLUX.1 family")


def double_block(name: str) -> list[LinearGroup]:
    """The nodes of a two-stream block: modulation, q/k/v, attention's output, MLP, image stream before text."""
    groups = []
    for norm in ("norm1.linear", "norm1_context.linear"):
        groups.append(LinearGroup(f"{name}.{norm}", (f"{name}.{norm}",), weight_only=True))
    a = f"{name}.attn"
    groups.append(LinearGroup(f"{a}.to_qkv", tuple(f"{a}.to_{m}" for m in "qkv")))
    groups.append(LinearGroup(f"{a}.to_added_qkv", tuple(f"{a}.add_{m}_proj" for m in "qkv")))
    groups += [LinearGroup(f"{a}.{m}", (f"{a}.{m}",)) for m in ("to_out.0", "to_add_out")]
    for ff in (f"{name}.ff.net", f"{name}.ff_context.net"):
        groups.append(LinearGroup(f"{ff}.0", (f"{ff}.0.proj",), Activation.GELU_TANH))
        groups.append(LinearGroup(f"{ff}.2", (f"{ff}.2",), x_from=Activation.GELU_TANH))
    return groups


def _single_block(name: str, block: Any) -> list[LinearGroup]:
    """One stream: q/k/v and the MLP read the same x; both end in `proj_out`, split by columns.

    q/k/v and proj_mlp are two nodes, since only the second has an activation.
    """
    out = f"{name}.proj_out"
    whole: int = block.proj_out.in_features
    first = whole - block.mlp_hidden_dim
    return [
        LinearGroup(f"{name}.norm.linear", (f"{name}.norm.linear",), weight_only=True),
        LinearGroup(f"{name}.attn.to_qkv", tuple(f"{name}.attn.to_{m}" for m in "qkv")),
        LinearGroup(f"{name}.proj_mlp", (f"{name}.proj_mlp",), Activation.GELU_TANH),
        LinearGroup(f"{out}.attn", (out,), columns=(0, first)),
        LinearGroup(f"{out}.mlp", (out,), columns=(first, whole), x_from=Activation.GELU_TANH),
    ]
