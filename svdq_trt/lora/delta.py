"""``Delta``: the change of one weight, in the one form that every reader of a LoRA makes and every user takes.

    W' = W + up · down + row_scale ⊙ W + full          b' = b + bias

A part that a file does not have is None. Letters: N output features, K input features, r rank.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

#: parameter, such as "proj_out.weight" -> its 16-bit value in the model without LoRAs
WeightOf = Callable[[str], Tensor]


@dataclass(frozen=True)
class Delta:
    """A change at some strength, f32.

    Attributes:
        down, up: [r, K], [N, r]. row_scale: [N], one less than what each row of the weight is multiplied by.
        full: [N, K]. bias: [N].
    """

    down: Tensor | None = None
    up: Tensor | None = None
    row_scale: Tensor | None = None
    full: Tensor | None = None
    bias: Tensor | None = None

    def dense(self, weight: Tensor) -> Tensor:
        """[N, K] f32: the change of `weight` [N, K] as one matrix."""
        total = torch.zeros(weight.shape) if self.full is None else self.full.clone()
        if self.up is not None and self.down is not None:
            total.addmm_(self.up, self.down)
        if self.row_scale is not None:
            total += self.row_scale[:, None] * weight.float()
        return total

    def times(self, strength: float) -> Delta:
        """The change times a number."""

        def scaled(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor * strength

        return Delta(self.down, scaled(self.up), scaled(self.row_scale), scaled(self.full), scaled(self.bias))

    def rows(self, start: int, count: int) -> Delta:
        """The part of it that acts on `count` output features from `start` on."""

        def cut(tensor: Tensor | None) -> Tensor | None:
            return None if tensor is None else tensor[start : start + count]

        return Delta(self.down, cut(self.up), cut(self.row_scale), cut(self.full), cut(self.bias))


def add(one: Delta, other: Delta) -> Delta:
    """The sum of two changes without factors."""
    assert one.up is None and other.up is None

    def total(a: Tensor | None, b: Tensor | None) -> Tensor | None:
        return b if a is None else a if b is None else a + b

    return Delta(
        row_scale=total(one.row_scale, other.row_scale),
        full=total(one.full, other.full),
        bias=total(one.bias, other.bias),
    )
