"""Nodes that the blocks of several models have, by names inside the block (`LinearGroup.within` completes them)."""

from __future__ import annotations

from typing import Any

from svdq_trt.contract.formats import Activation
from svdq_trt.models.recipe import LinearGroup


def node(name: str, *members: str, **more: Any) -> LinearGroup:
    """A node of `members`; by default of the one linear that has the node's name."""
    return LinearGroup(name, members or (name,), **more)


def qkv(attention: str, **more: Any) -> LinearGroup:
    """Queries, keys and values, which read the same tokens."""
    return node(f"{attention}.to_qkv", *(f"{attention}.to_{m}" for m in "qkv"), **more)


def modulation(name: str) -> LinearGroup:
    """An adaLN linear: one row per image, so its activations stay in 16 bit."""
    return node(name, weight_only=True)


def gelu_tanh_mlp(name: str) -> tuple[LinearGroup, LinearGroup]:
    """The MLP of diffusers' FeedForward with GELU (tanh), whose output the second linear may take as unsigned codes."""
    return (
        node(f"{name}.net.0", f"{name}.net.0.proj", activation=Activation.GELU_TANH),
        node(f"{name}.net.2", x_from=Activation.GELU_TANH),
    )


#: Image and text stream side by side with one attention over both, modulated by adaLN (FLUX.1, Stable Diffusion 3).
TWO_STREAMS = (
    modulation("norm1.linear"),
    modulation("norm1_context.linear"),
    qkv("attn"),
    node("attn.to_added_qkv", *(f"attn.add_{m}_proj" for m in "qkv")),
    node("attn.to_out.0"),
    node("attn.to_add_out"),
    *gelu_tanh_mlp("ff"),
    *gelu_tanh_mlp("ff_context"),
)

#: Self attention of the image and cross attention with the text, of which there are few tokens (PixArt, SANA).
SELF_AND_CROSS = (
    qkv("attn1"),
    node("attn1.to_out.0"),
    node("attn2.to_q"),
    node("attn2.to_kv", "attn2.to_k", "attn2.to_v", weight_only=True),
    node("attn2.to_out.0"),
)
