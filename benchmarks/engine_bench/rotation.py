"""FLUX's rotation as diffusers writes it, and as a 16-bit export without this project's rewriting has it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from unittest import mock

import torch

from svdq_trt.models import attention
from svdq_trt.models.positions import Rotary


@contextlib.contextmanager
def diffusers_rotation(wanted: bool) -> Iterator[None]:
    """Context in which modules rotate pairs by strided slices and a stack; if not `wanted`, nothing changes."""
    with mock.patch.object(attention, "rotate", _strided) if wanted else contextlib.nullcontext():
        yield


def _strided(x: torch.Tensor, rotary: Rotary) -> torch.Tensor:
    """Rotate x [B, L, H, D] like diffusers' apply_rotary_emb."""
    cos, sin = (t[:, None] for t in rotary[:2])
    turned = torch.stack((-x[..., 1::2], x[..., 0::2]), dim=-1).flatten(-2)
    return (x.float() * cos + turned.float() * sin).to(x.dtype)
