"""The part of a tensor that the other format cannot hold, carried along as a small text.

Nunchaku divides by a 16-bit `smooth`, we multiply by a 16-bit `act_mul`: of neighbouring values some share their
rounded reciprocal. Its adaLN bias holds b + 1, rounded. So a tensor made by going there and back may differ from
the original in its last bits. The difference of the bit patterns is kept (base64 of deflated int16, mostly zeros)
and added again when the tensor is made from the same values; on other values it is not used.
"""

from __future__ import annotations

import base64
import binascii
import zlib
from typing import Any

import torch
from torch import Tensor


def difference(derived: Tensor, original: Tensor) -> str:
    """Text that turns `derived` into `original` (16 bits, same shape and dtype); empty where they are equal."""
    delta = original.view(torch.int16) - derived.view(torch.int16)  # wraps around, and restore() wraps back
    if not bool(delta.any()):
        return ""
    return base64.b64encode(zlib.compress(delta.contiguous().numpy().tobytes(), 6)).decode()


def restore(derived: Tensor, text: Any) -> Tensor:
    """`derived` with the difference added; `derived` itself if `text` does not fit that size."""
    if not isinstance(text, str) or not text:
        return derived
    size = 2 * derived.numel()
    try:
        raw = zlib.decompressobj().decompress(base64.b64decode(text, validate=True), size + 1)
    except (binascii.Error, ValueError, zlib.error):
        return derived
    if len(raw) != size:
        return derived
    delta = torch.frombuffer(bytearray(raw), dtype=torch.int16).view(derived.shape)
    return (derived.contiguous().view(torch.int16) + delta).view(derived.dtype)


def reciprocal(values: Tensor) -> Tensor:
    """1 / values, rounded once to their 16-bit dtype."""
    return (1.0 / values.float()).to(values.dtype)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equal bit for bit (16-bit tensors)."""
    return a.dtype == b.dtype and torch.equal(a.contiguous().view(torch.int16), b.contiguous().view(torch.int16))
