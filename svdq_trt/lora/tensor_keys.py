"""The tensor names of a LoRA file: ``<layer><what>``, in every form in use, and the reasons for refusing others.

The endings are those of diffusers, PEFT, kohya's trainer, LyCORIS and ComfyUI. Which parts make an adapter is in
changes.py.
"""

from __future__ import annotations

import re
from typing import NamedTuple

#: part -> endings; "." or "_" before diffusers' older ones, an adapter name inside PEFT's
_ENDINGS = (
    ("down", r"\.lora_A(\.[^.]+)?\.weight|[._]lora\.down\.weight|\.(lora_|lora_linear_layer\.)down\.weight"),
    ("up", r"\.lora_B(\.[^.]+)?\.weight|[._]lora\.up\.weight|\.(lora_|lora_linear_layer\.)up\.weight"),
    ("mid", r"\.lora_mid\.weight"),
    ("up_bias", r"\.lora_B(\.[^.]+)?\.bias"),
    ("alpha", r"\.alpha"),
    ("magnitude", r"\.lora_magnitude_vector(\.[^.]+)?(\.weight)?"),  # PEFT's DoRA
    ("dora_scale", r"\.dora_scale"),  # LyCORIS' and kohya's
    *((part, rf"\.{part}") for part in ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2")),
    *((part, rf"\.{part}") for part in ("lokr_w1", "lokr_w1_a", "lokr_w1_b")),
    *((part, rf"\.{part}") for part in ("lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")),
    ("oft_blocks", r"\.oft_blocks"),
    ("rescale", r"\.rescale"),
    ("oft_R", r"\.oft_R(\.[^.]+)?(\.weight)?"),  # PEFT's
    ("diff", r"\.diff"),
    ("diff_b", r"\.diff_b"),
)
_PARTS = tuple((part, re.compile(rf"(.+?)({ending})")) for part, ending in _ENDINGS)
#: XLabs' processors: a number may stand between the layer and its factor
_XLABS = re.compile(r"(.+\.processor\.(?:qkv|proj)_lora[12]?)\.(down|up)\.weight")

#: of a layer as a whole: PEFT's modules_to_save
WHOLE = ("weight", "bias")

#: other adapters' endings -> the kind of adapter
_OTHERS = (
    (re.compile(r"(.+?)\.(oft_\w+)(\.[^.]+)?(\.weight)?"), "OFT of an older form"),
    (re.compile(r"(.+?)\.(boft_\w+)(\.[^.]+)?(\.weight)?"), "BOFT, a product of rotations"),
    (re.compile(r"(.+?)\.(a1|a2|b1|b2|bm1|bm2)(\.weight)?"), "GLoRA"),
    (re.compile(r"(.+?)\.(on_input|ia3_l)"), "IA3, a scaling of activations"),
    (re.compile(r"(.+?)\.(w_norm|b_norm)"), "a change of a norm layer"),
    (re.compile(r"(.+?)\.(set_weight|reshape_weight)"), "a whole weight in place of the model's"),
    (re.compile(r"(.+?)\.(query_norm|key_norm)\.scale"), "a control LoRA's norm layer"),
    (re.compile(r"(.+?)\.(scale_weight|scale_input|weight_scale|input_scale)"), "a scale of fp8 factors"),
)


class Key(NamedTuple):
    """A tensor's name, taken apart: the layer's spelling, and `part`: down, up, mid, ..., or "" with a reason."""

    layer: str
    part: str
    reason: str = ""


def parse_key(name: str) -> Key:
    """Take a tensor's name apart. A name of unknown form is its own layer."""
    xlabs = _XLABS.fullmatch(name)
    if xlabs:
        return Key(xlabs[1], xlabs[2])
    for part, pattern in _PARTS:
        match = pattern.fullmatch(name)
        if match:
            return Key(match[1], part)
    for pattern, reason in _OTHERS:
        match = pattern.fullmatch(name)
        if match:
            return Key(match[1], "", reason)
    layer, _, part = name.rpartition(".")
    return Key(layer, part) if layer and part in WHOLE else Key(name, "", "no LoRA tensor")
