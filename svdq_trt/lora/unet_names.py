"""Original (LDM) names of a diffusers UNet2DConditionModel's layers, as kohya's trainer and ComfyUI use them.

The original UNet numbers its blocks consecutively, so a name depends on how many layers a block has and on which blocks
have attention. tests/cpu/lora/test_names.py checks the table against diffusers' own converter for whole files.
"""

from __future__ import annotations

import re
from collections.abc import Collection

_RESNET = {
    "conv1": "in_layers.2",
    "conv2": "out_layers.3",
    "time_emb_proj": "emb_layers.1",
    "conv_shortcut": "skip_connection",
}
_TOP = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_MID = {"resnets.0": "0", "attentions.0": "1", "resnets.1": "2"}
_BLOCK = re.compile(r"(down_blocks|up_blocks)\.(\d+)\.(resnets|attentions|downsamplers|upsamplers)\.(\d+)\.(.+)")


def unet_original_name(layer: str, layers: Collection[str], layers_per_block: int) -> str:
    """The LDM name of a layer, without prefix; empty for a layer that the original does not have.

    Args:
        layer: diffusers' dotted name. layers: all such names, which show the blocks with attention.
        layers_per_block: as in the model's config; an up block has one more.
    """
    if layer in _TOP:
        return _TOP[layer]
    if layer.startswith("mid_block."):
        kind, place, rest = layer.removeprefix("mid_block.").split(".", 2)
        middle = _MID.get(f"{kind}.{place}")
        return "" if middle is None else f"middle_block.{middle}.{_inner(kind, rest)}"
    match = _BLOCK.fullmatch(layer)
    if not match:
        return ""
    side, block, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    per_block = layers_per_block + 1
    if side == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{(block + 1) * per_block}.0.op" if rest == "conv" else ""
        number = 1 + block * per_block + index
        return f"input_blocks.{number}.{int(kind == 'attentions')}.{_inner(kind, rest)}"
    if kind == "upsamplers":
        attention = any(name.startswith(f"up_blocks.{block}.attentions.") for name in layers)
        return f"output_blocks.{block * per_block + layers_per_block}.{1 + attention}.{rest}"
    return f"output_blocks.{block * per_block + index}.{int(kind == 'attentions')}.{_inner(kind, rest)}"


def _inner(kind: str, rest: str) -> str:
    return _RESNET.get(rest, rest) if kind == "resnets" else rest
