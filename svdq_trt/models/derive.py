"""The recipe of a model, derived from runs of it on meta tensors: nothing about a class is written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import nn

from svdq_trt.models.recipe import Recipe


def recipe(
    module: nn.Module, calls: Sequence[Mapping[str, Any]], skip: Sequence[str] = (), kv_blocks: int = 1
) -> Recipe:
    """Derive what is quantized in which node, and why the other layers stay in 16 bit.

    Args:
        module: a denoiser on meta, not changed yet.
        calls: keyword arguments of its forward at two sizes. Every size that may vary differs between them (image and
            text; the batch does not), so that what has one row per image is told from tokens. Tensors are on meta;
            lists, tuples and dictionaries may hold them.
        skip: see `complete`.
        kv_blocks: blocks in a row whose cross-attention keys and values share a node.

    Raises:
        UnsupportedError: names what in the model cannot be traced.
        UsageError: an entry of `skip` that matches no node.
    """
    raise NotImplementedError
