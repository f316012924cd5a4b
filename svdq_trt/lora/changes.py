"""What an adapter's tensors mean: one class per kind, each of which makes a `Delta`. Here: LoRA and plain differences.

The other kinds are in products.py and weighted.py, the table of all in kinds.py. Nothing in a file is trusted: shapes
are compared before a value is read, values are checked once they are.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from svdq_trt.artifact.tensor_file import FLOATS, TensorFile, check_finite
from svdq_trt.base.errors import ArtifactError
from svdq_trt.contract.formats import R_MAX
from svdq_trt.lora.delta import Delta, WeightOf
from svdq_trt.lora.names import Target

#: number types of an alpha
NUMBERS = FLOATS | {"I64", "I32", "I16", "I8", "U8"}
Sizes = Mapping[str, tuple[int, ...]]


def read_number(file: TensorFile, name: str, kinds: set[str] | None = None) -> Tensor:
    """A tensor as f32, checked. Raises ArtifactError for a number type that is not in `kinds`, NaN or Inf."""
    where, kind = f"{file.path}: '{name}'", file.kind(name)
    if kind not in (kinds or FLOATS):
        raise ArtifactError(where, f"numbers of type {kind}", "floats", "Save the LoRA without quantizing it.")
    tensor = file.read_stored(name).to(torch.float32)
    check_finite(where, tensor)
    return tensor


@dataclass(frozen=True)
class Change(ABC):
    """The change that some tensors of a file make to a layer, or to several that the file's names stand for.

    Attributes:
        name: the layer as the file spells it. targets: the rows of layers that it acts on.
        shape: [N, K] or [N, C, kh, kw] of the spelled layer's weight. scale: s.
        parts: part -> tensor name.
    """

    name: str
    targets: tuple[Target, ...]
    shape: tuple[int, ...]
    scale: float
    parts: Mapping[str, str]
    file: TensorFile = field(repr=False)

    kind: ClassVar[str]
    needs_weight: ClassVar[bool] = False

    @property
    def has_bias(self) -> bool:
        """It changes the layer's bias, too."""
        return bool(self.parts.keys() & {"up_bias", "diff_b", "bias"})

    @classmethod
    @abstractmethod
    def rank_of(cls, sizes: Sizes) -> int | None:
        """r, by which alpha is divided; None where alpha does not count."""

    @classmethod
    @abstractmethod
    def misfit(cls, sizes: Sizes, shape: tuple[int, ...]) -> str:
        """Why tensors of these sizes cannot change a weight of `shape`; empty when they can."""

    def check_values(self) -> None:
        """Read every tensor. Raises ArtifactError for NaN, Inf, or a number type that factors cannot have."""
        for part in self.parts:
            read_number(self.file, self.parts[part], NUMBERS if part == "alpha" else FLOATS)

    @abstractmethod
    def at(self, strength: float, weight_of: WeightOf | None) -> Delta:
        """The change at a strength. weight_of: needed where `needs_weight`."""

    def _read(self, part: str) -> Tensor:
        return read_number(self.file, self.parts[part])

    def _weight(self, weight_of: WeightOf | None) -> Tensor:
        """[N, K] f32: the spelled layer's weight, of the layers that it stands for."""
        assert weight_of is not None
        weight = torch.zeros(self.shape[0], math.prod(self.shape[1:]))
        for t in self.targets:
            own = weight_of(f"{t.layer}.weight").flatten(1)
            weight[t.source : t.source + t.rows] = own[t.start : t.start + t.rows].float()
        return weight


class Additive(Change):
    """A change that is the same for every weight, and proportional to the strength."""

    @abstractmethod
    def delta(self) -> Delta:
        """The change at strength 1 [N, K]."""

    def at(self, strength: float, weight_of: WeightOf | None = None) -> Delta:
        """See Change."""
        return self.delta().times(strength)


class LowRank(Additive):
    """LoRA, and LoCon of convolutions, whose middle one makes three convolutions of two."""

    kind = "LoRA"

    @classmethod
    def rank_of(cls, sizes: Sizes) -> int | None:
        """r: outputs of down."""
        return sizes["down"][0]

    @classmethod
    def misfit(cls, sizes: Sizes, shape: tuple[int, ...]) -> str:
        """See Change."""
        down, up, rank = sizes["down"], sizes["up"], sizes["down"][0] if sizes["down"] else 0
        if not 0 < rank <= R_MAX:
            return f"rank {rank}"
        ones = (1,) * (len(shape) - 2)
        if "mid" in sizes:
            mid = sizes["mid"]
            inner = mid[1] if len(mid) > 1 else 0
            want_down, want_mid = (inner, shape[1], *ones), (up[1] if len(up) > 1 else 0, inner, *shape[2:])
            if len(shape) == 2 or mid != want_mid or down != want_down:
                return f"shapes {list(down)}, {list(mid)} of a layer {list(shape)}"
            rank = mid[0]
        elif down not in ((rank, *shape[1:]), *(((rank, shape[1], 1, 1),) if len(shape) == 2 else ())):
            if len(down) == len(shape) == 2 and down[1] > shape[1]:
                return f"for {down[1]} inputs, as a control LoRA's, where the model has {shape[1]}"
            return f"down {list(down)}, want {[rank, *shape[1:]]}"
        if up not in ((shape[0], rank), (shape[0], rank, 1, 1), (shape[0], rank, *ones)):
            return f"up {list(up)}, want {[shape[0], rank]}"
        if "up_bias" in sizes and sizes["up_bias"] != shape[:1]:
            return f"bias {list(sizes['up_bias'])}, want {[shape[0]]}"
        return ""

    def down(self) -> Tensor:
        """[r, K] f32; K = C·kh·kw for a convolution."""
        down = self._read("down")
        if "mid" in self.parts:  # [r, r, kh, kw] after [r, C, 1, 1]: together one convolution
            down = torch.einsum("abij,bc->acij", self._read("mid"), down.flatten(1))
        return down.flatten(1)

    def up(self) -> Tensor:
        """[N, r] f32, `scale` folded in."""
        return self._read("up").flatten(1) * self.scale

    def delta(self) -> Delta:
        """Factors, and PEFT's lora_bias, which is the up factor's."""
        bias = self._read("up_bias") * self.scale if "up_bias" in self.parts else None
        return Delta(self.down(), self.up(), bias=bias)


class Difference(Additive):
    """ComfyUI's diff and diff_b: what is added to a weight and a bias. All zeros, as from an extraction, is nothing."""

    kind = "difference"

    @classmethod
    def rank_of(cls, sizes: Sizes) -> int | None:
        """Alpha does not count."""
        return None

    @classmethod
    def misfit(cls, sizes: Sizes, shape: tuple[int, ...]) -> str:
        """See Change."""
        diff, bias = sizes.get("diff", shape), sizes.get("diff_b", shape[:1])
        if diff not in (shape, *(((*shape, 1, 1),) if len(shape) == 2 else ())):
            return f"diff {list(diff)}, want {list(shape)}"
        return "" if bias == shape[:1] else f"diff_b {list(bias)}, want {[shape[0]]}"

    def delta(self) -> Delta:
        """[N, K] and [N], without what is zero."""
        full = self._read("diff").flatten(1) if "diff" in self.parts else None
        bias = self._read("diff_b") if "diff_b" in self.parts else None
        return Delta(full=_unless_zero(full), bias=_unless_zero(bias))


def _unless_zero(tensor: Tensor | None) -> Tensor | None:
    return tensor if tensor is not None and tensor.any() else None
