"""The tensor names of a LoRA file: ``<layer><what>``, in every form in use, and the reasons for refusing others."""

from __future__ import annotations

import re
from typing import NamedTuple

#: part -> endings; "." or "_" before diffusers' older ones, an adapter name inside PEFT's
_ENDINGS = (
    ("down", r"\.lora_A(\.[^.]+)?\.weight|[._]lora\.down\.weight|\.(lora_|lora_linear_layer\.)down\.weight"),
    ("up", r"\.lora_B(\.[^.]+)?\.weight|[._]lora\.up\.weight|\.(lora_|lora_linear_layer\.)up\.weight"),
    ("mid", r"\.lora_mid\.weight"),
    ("alpha", r"\.alpha"),
)
_PARTS = tuple((part, re.compile(rf"(.+?)({ending})")) for part, ending in _ENDINGS)

#: other adapters' endings -> the kind of adapter
_OTHERS = (
    (re.compile(r"(.+?)\.(dora_scale|lora_magnitude_vector(\.[^.]+)?(\.weight)?)"), "DoRA, which rescales the weight"),
    (re.compile(r"(.+?)\.hada_\w+"), "LoHa, a product of two low-rank matrices"),
    (re.compile(r"(.+?)\.lokr_\w+"), "LoKr, a Kronecker product"),
    (re.compile(r"(.+?)\.(oft_\w+|boft_\w+|a1|a2|b1|b2|on_input)"), "an adapter of another kind than LoRA"),
    (re.compile(r"(.+?)\.(diff|diff_b|set_weight|lora_[AB](\.[^.]+)?\.bias)"), "a change of a bias or a whole weight"),
)


class Key(NamedTuple):
    """A tensor's name, taken apart: the layer's spelling, and `part`: down, up, mid, alpha, or "" with a reason."""

    layer: str
    part: str
    reason: str = ""


def parse_key(name: str) -> Key:
    """Take a tensor's name apart. A name of unknown form is its own layer."""
    for part, pattern in _PARTS:
        match = pattern.fullmatch(name)
        if match:
            return Key(match[1], part)
    for pattern, reason in _OTHERS:
        match = pattern.fullmatch(name)
        if match:
            return Key(match[1], "", reason)
    return Key(name, "", "no LoRA tensor")
