"""What the linears of a file cannot hold of one of our nodes: written beside them, and used on the way back.

Signed codes where the node had unsigned ones, a tensor scale that is another linear's, and the roundings of both.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from svdq_trt.contract.weights import SvdqWeights
from svdq_trt.interop.exact import difference, restore
from svdq_trt.interop.result import GELU_SHIFT, shifted_bias


def hint_for(node: SvdqWeights, as_read: SvdqWeights) -> dict[str, Any]:
    """The hint with which `restored` makes `node` of its tensors as they are read from the file; {} if they agree."""
    hint: dict[str, Any] = {}
    if node.act_shift == GELU_SHIFT and not as_read.act_unsigned:
        hint["unsigned"] = True
    if not torch.equal(node.wscale2, as_read.wscale2):
        hint["tensor_scale"] = float(node.wscale2[0])
    derived = restored(as_read, hint)
    for name in ("act_mul", "bias"):
        if text := difference(getattr(derived, name), getattr(node, name)):
            hint[name] = text
    return hint


def restored(as_read: SvdqWeights, hint: Mapping[str, Any]) -> SvdqWeights:
    """The node that the hint was written for; one that does not agree with the tensors is not used."""
    weights = as_read
    scale = hint.get("tensor_scale")
    if isinstance(scale, float) and 0 < scale < math.inf:
        act_mul = (weights.act_mul.float() * (weights.wscale2[0] / scale)).to(weights.act_mul.dtype)
        weights = replace(weights, act_mul=act_mul, wscale2=torch.full_like(weights.wscale2, scale))
    weights = replace(weights, act_mul=restore(weights.act_mul, hint.get("act_mul")))
    if hint.get("unsigned") is True and weights.format.unsigned_codes:
        bias = shifted_bias(weights, GELU_SHIFT)
        weights = replace(weights, bias=bias, act_unsigned=True, act_shift=GELU_SHIFT)
    weights = replace(weights, bias=restore(weights.bias, hint.get("bias")))
    sound = bool((weights.act_mul > 0).all() & weights.act_mul.isfinite().all() & weights.bias.isfinite().all())
    return weights if sound else as_read
