"""Samples of one call whose sizes differ, as prompts of their own length do: those of equal sizes run together.

So an engine needs no padding, which an attention would have to mask, and takes no time for it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from svdq_trt.base.errors import ShapeError
from svdq_trt.models.spec import TensorIO


class Samples(tuple[Tensor, ...]):
    """One input's values: a tensor for each sample, without a batch axis."""


def alike(inputs: Sequence[TensorIO], found: Mapping[str, Any]) -> list[tuple[list[int], dict[str, Any]]]:
    """Split the values of a call's inputs by name, without those left out, into calls of equal sizes.

    Returns:
        the numbers of the samples of each call, and its values; without `Samples` one call with the values given.

    Raises:
        ShapeError: not as many values as samples.
    """
    each = {name: value for name, value in found.items() if isinstance(value, Samples)}
    if not each:
        return [([], dict(found))]
    count = len(next(iter(each.values())))
    inputs = [io for io in inputs if io.name in found]
    for io in inputs:
        given = len(found[io.name]) if io.has_batch and _has_rows(found[io.name]) else count
        if given != count:
            raise ShapeError(f"input '{io.name}'", f"batch {given}", f"{count}, as in '{next(iter(each))}'")
    rows: dict[tuple[torch.Size, ...], list[int]] = {}
    for row, values in enumerate(zip(*each.values(), strict=True)):
        rows.setdefault(tuple(value.shape for value in values), []).append(row)
    return [(own, {io.name: _take(io, found[io.name], own) for io in inputs}) for own in rows.values()]


def in_order(parts: Sequence[tuple[list[int], Tensor]]) -> Tensor:
    """The outputs of `alike`'s calls as the one output of the call that was split."""
    if len(parts) == 1:
        return parts[0][1]
    rows = torch.tensor([row for own, _ in parts for row in own])
    return torch.cat([out for _, out in parts])[rows.argsort()]


def _take(io: TensorIO, value: Any, rows: list[int]) -> Any:
    """What some of the samples have of an input."""
    if isinstance(value, Samples):
        return torch.stack([value[row] for row in rows]) if io.has_batch else value[rows[0]]
    return value[rows] if io.has_batch and _has_rows(value) else value


def _has_rows(value: Any) -> bool:
    """Whether it has a value for each sample: a timestep may be one number for all."""
    return isinstance(value, Samples) or (isinstance(value, Tensor) and value.numel() > 1)
