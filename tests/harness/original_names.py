"""Tensors of diffusers' models under the names they had before diffusers, joined as those files join them."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

State = dict[str, Tensor]
PREFIX = "model.diffusion_model."


def _swapped(tensor: Tensor) -> Tensor:
    """Scale and shift, in the other order."""
    return torch.cat(tensor.chunk(2)[::-1])


class _Writer:
    """Moves tensors of `state` to `out` under other names."""

    def __init__(self, state: State) -> None:
        self.state, self.out = dict(state), State()

    def rename(self, new: str, old: str, change: Callable[[Tensor], Tensor] = lambda t: t) -> None:
        for leaf in ("weight", "bias"):
            if f"{new}.{leaf}" in self.state:
                self.out[f"{old}.{leaf}"] = change(self.state.pop(f"{new}.{leaf}"))

    def move(self, new: str, old: str) -> None:
        if new in self.state:
            self.out[old] = self.state.pop(new)

    def join(self, news: Sequence[str], old: str) -> None:
        for leaf in ("weight", "bias"):
            if f"{news[0]}.{leaf}" in self.state:
                self.out[f"{old}.{leaf}"] = torch.cat([self.state.pop(f"{new}.{leaf}") for new in news])

    def finished(self) -> State:
        assert not self.state, sorted(self.state)[:5]
        return self.out


def _blocks(state: State, name: str) -> range:
    found = {int(m[1]) for n in state if (m := re.match(rf"{name}\.(\d+)\.", n))}
    return range(len(found))


def flux(state: State) -> State:
    """Black Forest Labs' names."""
    w = _Writer(state)
    for name, old in (("timestep", "time"), ("text", "vector"), ("guidance", "guidance")):
        for new, layer in (("linear_1", "in_layer"), ("linear_2", "out_layer")):
            w.rename(f"time_text_embed.{name}_embedder.{new}", f"{old}_in.{layer}")
    w.rename("context_embedder", "txt_in")
    w.rename("x_embedder", "img_in")
    w.rename("proj_out", "final_layer.linear")
    w.rename("norm_out.linear", "final_layer.adaLN_modulation.1", _swapped)
    for i in _blocks(state, "transformer_blocks"):
        new, old = f"transformer_blocks.{i}", f"double_blocks.{i}"
        for a, b in (("norm1", "img_mod"), ("norm1_context", "txt_mod")):
            w.rename(f"{new}.{a}.linear", f"{old}.{b}.lin")
        w.join([f"{new}.attn.to_{x}" for x in "qkv"], f"{old}.img_attn.qkv")
        w.join([f"{new}.attn.add_{x}_proj" for x in "qkv"], f"{old}.txt_attn.qkv")
        for a, b in (("norm_q", "img_attn.norm.query_norm"), ("norm_k", "img_attn.norm.key_norm")):
            w.move(f"{new}.attn.{a}.weight", f"{old}.{b}.scale")
            w.move(f"{new}.attn.{a.replace('norm_', 'norm_added_')}.weight", f"{old}.{b.replace('img', 'txt')}.scale")
        for a, b in (("ff", "img_mlp"), ("ff_context", "txt_mlp")):
            w.rename(f"{new}.{a}.net.0.proj", f"{old}.{b}.0")
            w.rename(f"{new}.{a}.net.2", f"{old}.{b}.2")
        w.rename(f"{new}.attn.to_out.0", f"{old}.img_attn.proj")
        w.rename(f"{new}.attn.to_add_out", f"{old}.txt_attn.proj")
    for i in _blocks(state, "single_transformer_blocks"):
        new, old = f"single_transformer_blocks.{i}", f"single_blocks.{i}"
        w.rename(f"{new}.norm.linear", f"{old}.modulation.lin")
        w.join([f"{new}.{x}" for x in ("attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp")], f"{old}.linear1")
        w.move(f"{new}.attn.norm_q.weight", f"{old}.norm.query_norm.scale")
        w.move(f"{new}.attn.norm_k.weight", f"{old}.norm.key_norm.scale")
        w.rename(f"{new}.proj_out", f"{old}.linear2")
    return w.finished()


def sd3(state: State) -> State:
    """Stability AI's names of Stable Diffusion 3.5."""
    w = _Writer(state)
    w.move("pos_embed.pos_embed", "pos_embed")
    w.rename("pos_embed.proj", "x_embedder.proj")
    w.rename("context_embedder", "context_embedder")
    for a, b in (("timestep", "t"), ("text", "y")):
        w.rename(f"time_text_embed.{a}_embedder.linear_1", f"{b}_embedder.mlp.0")
        w.rename(f"time_text_embed.{a}_embedder.linear_2", f"{b}_embedder.mlp.2")
    w.rename("proj_out", "final_layer.linear")
    w.rename("norm_out.linear", "final_layer.adaLN_modulation.1", _swapped)
    blocks = _blocks(state, "transformer_blocks")
    for i in blocks:
        new, old = f"transformer_blocks.{i}", f"joint_blocks.{i}"
        w.join([f"{new}.attn.to_{x}" for x in "qkv"], f"{old}.x_block.attn.qkv")
        w.join([f"{new}.attn2.to_{x}" for x in "qkv"], f"{old}.x_block.attn2.qkv")
        w.join([f"{new}.attn.add_{x}_proj" for x in "qkv"], f"{old}.context_block.attn.qkv")
        for x in "qk":
            w.rename(f"{new}.attn.norm_{x}", f"{old}.x_block.attn.ln_{x}")
            w.rename(f"{new}.attn2.norm_{x}", f"{old}.x_block.attn2.ln_{x}")
            w.rename(f"{new}.attn.norm_added_{x}", f"{old}.context_block.attn.ln_{x}")
        w.rename(f"{new}.attn.to_out.0", f"{old}.x_block.attn.proj")
        w.rename(f"{new}.attn2.to_out.0", f"{old}.x_block.attn2.proj")
        w.rename(f"{new}.attn.to_add_out", f"{old}.context_block.attn.proj")
        w.rename(f"{new}.norm1.linear", f"{old}.x_block.adaLN_modulation.1")
        last = _swapped if i == blocks[-1] else lambda t: t
        w.rename(f"{new}.norm1_context.linear", f"{old}.context_block.adaLN_modulation.1", last)
        for a, b in (("ff", "x_block"), ("ff_context", "context_block")):
            w.rename(f"{new}.{a}.net.0.proj", f"{old}.{b}.mlp.fc1")
            w.rename(f"{new}.{a}.net.2", f"{old}.{b}.mlp.fc2")
    return w.finished()


def sana(state: State) -> State:
    """NVIDIA's names of SANA, with the two tensors that diffusers has no use for."""
    w = _Writer(state)
    w.out |= {"pos_embed": torch.zeros(1, 4, 8), "y_embedder.y_embedding": torch.zeros(3, 8)}
    w.rename("patch_embed.proj", "x_embedder.proj")
    w.rename("time_embed.emb.timestep_embedder.linear_1", "t_embedder.mlp.0")
    w.rename("time_embed.emb.timestep_embedder.linear_2", "t_embedder.mlp.2")
    w.rename("time_embed.linear", "t_block.1")
    w.rename("caption_projection.linear_1", "y_embedder.y_proj.fc1")
    w.rename("caption_projection.linear_2", "y_embedder.y_proj.fc2")
    w.rename("caption_norm", "attention_y_norm")
    w.rename("proj_out", "final_layer.linear")
    w.move("scale_shift_table", "final_layer.scale_shift_table")
    for i in _blocks(state, "transformer_blocks"):
        new, old = f"transformer_blocks.{i}", f"blocks.{i}"
        w.move(f"{new}.scale_shift_table", f"{old}.scale_shift_table")
        w.join([f"{new}.attn1.to_{x}" for x in "qkv"], f"{old}.attn.qkv")
        w.rename(f"{new}.attn1.to_out.0", f"{old}.attn.proj")
        w.rename(f"{new}.attn2.to_q", f"{old}.cross_attn.q_linear")
        w.join([f"{new}.attn2.to_{x}" for x in "kv"], f"{old}.cross_attn.kv_linear")
        w.rename(f"{new}.attn2.to_out.0", f"{old}.cross_attn.proj")
        for layer in ("inverted", "depth", "point"):
            w.rename(f"{new}.ff.conv_{layer}", f"{old}.mlp.{layer}_conv.conv")
    return w.finished()
