"""Changes that are made of the weight itself: DoRA, OFT, and whole weights in place of the model's.

| kind | parts | changed weight |
|---|---|---|
| DoRA | LoRA, LoHa or LoKr, and a magnitude m | m / ‖W + ΔW‖ · (W + ΔW) |
| OFT, LyCORIS' | oft_blocks, rescale | rescale ⊙ rotations of blocks of rows · W |
| OFT, PEFT's | oft_R | W · rotations of blocks of columns |
| whole weight | weight, bias (PEFT's modules_to_save) | as given |

Sources: PEFT's tuners/lora/dora.py, LyCORIS' functional/general.py (weight_decompose) and modules/diag_oft.py, PEFT's
tuners/oft/layer.py; tests
compare with both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from svdq_trt.lora.changes import NUMBERS, Additive, Change, Sizes, read_number
from svdq_trt.lora.delta import Delta, WeightOf

_TINY = 1e-12  # a row of zeros has no direction to bring back


class Rotation(Change):
    """LyCORIS' diagonal OFT: blocks of output features are rotated, then rescaled."""

    kind = "OFT"
    needs_weight = True

    @classmethod
    def rank_of(cls, sizes: Sizes) -> int | None:
        """Alpha is a bound of the rotation's size here, not a strength."""
        return None

    @classmethod
    def misfit(cls, sizes: Sizes, shape: tuple[int, ...]) -> str:
        """See Change."""
        blocks, rescale = sizes["oft_blocks"], sizes.get("rescale", (shape[0],))
        if len(blocks) != 3 or blocks[1] != blocks[2] or blocks[0] * blocks[1] != shape[0]:
            return f"blocks {list(blocks)} of a layer {list(shape)}"
        return "" if math.prod(rescale) == rescale[0] == shape[0] else f"rescale {list(rescale)}, want {[shape[0]]}"

    def at(self, strength: float, weight_of: WeightOf | None) -> Delta:
        """See Change: strength · (rescale ⊙ R − I) · W, R by Cayley's transform of a skew-symmetric matrix."""
        weight, blocks = self._weight(weight_of), self._read("oft_blocks").double()
        skew = blocks - blocks.transpose(1, 2)
        bound = float(read_number(self.file, self.parts["alpha"], NUMBERS).reshape(())) if "alpha" in self.parts else 0
        norm = float(skew.norm()) + 1e-8
        if bound > 0 and norm > bound * self.shape[0]:
            skew = skew * (bound * self.shape[0] / norm)
        eye = torch.eye(skew.shape[1], dtype=skew.dtype)
        turn = ((eye + skew) @ torch.linalg.inv(eye - skew) - eye).float()
        grouped = weight.view(*blocks.shape[:2], -1)
        full = torch.einsum("knm,knc->kmc", turn, grouped).reshape(weight.shape)
        if "rescale" not in self.parts:
            return Delta(full=full).times(strength)
        rescale = self._read("rescale").flatten()
        return Delta(full=full * rescale[:, None], row_scale=rescale - 1).times(strength)


@dataclass(frozen=True)
class InputRotation(Change):
    """PEFT's OFT of a linear: blocks of input features are rotated before the weight.

    Attributes:
        terms: of the series that PEFT takes for Cayley's transform; None: the transform itself.
    """

    kind = "OFT"
    needs_weight = True

    terms: int | None = None

    @classmethod
    def rank_of(cls, sizes: Sizes) -> int | None:
        """A rotation has no strength."""
        return None

    @classmethod
    def misfit(cls, sizes: Sizes, shape: tuple[int, ...]) -> str:
        """See Change. One row per block: what is right of the diagonal; a single row for all blocks if shared."""
        if len(shape) != 2:
            return "OFT of a convolution in PEFT's form"
        found = sizes["oft_R"]
        block = _block_size(found[1]) if len(found) == 2 else 0
        if not block or shape[1] % block or found[0] not in (1, shape[1] // block):
            return f"rotations {list(found)} of a layer {list(shape)}"
        return ""

    def at(self, strength: float, weight_of: WeightOf | None) -> Delta:
        """See Change: strength · W · (Rᵀ − I)."""
        weight, given = self._weight(weight_of), self._read("oft_R").double()
        block = _block_size(given.shape[1])
        skew = given.new_zeros(len(given), block, block)
        above = torch.triu_indices(block, block, 1)
        skew[:, above[0], above[1]] = given
        skew = skew - skew.transpose(1, 2)
        turn = (self._rotation(skew) - torch.eye(block, dtype=skew.dtype)).float()
        turn = turn.expand(weight.shape[1] // block, -1, -1)
        full = torch.einsum("nbk,bck->nbc", weight.view(len(weight), -1, block), turn).reshape(weight.shape)
        return Delta(full=full).times(strength)

    def _rotation(self, skew: Tensor) -> Tensor:
        eye = torch.eye(skew.shape[-1], dtype=skew.dtype).expand_as(skew)
        if self.terms is None:
            solved: Tensor = torch.linalg.solve(eye + skew, eye - skew)
            return solved
        # The last of PEFT's series counts once, the others twice; it has at least three besides the first.
        last = max(self.terms - 1, 3) if self.terms > 2 else 0
        total = eye.clone()
        for power in range(1, last or self.terms):
            total += 2 * torch.linalg.matrix_power(skew, power)
        return total + torch.linalg.matrix_power(skew, last) if last else total


def _block_size(elements: int) -> int:
    """The b of which b (b - 1) / 2 is `elements`; 0 for none."""
    found = (1 + math.isqrt(1 + 8 * elements)) // 2
    return found if found * (found - 1) // 2 == elements else 0


class Dora(Change):
    """DoRA: the changed weight, brought back to a magnitude that was trained.

    The magnitude is one number per row, or (LyCORIS' older files) per column. At strengths other than 1, LyCORIS'
    files scale the whole change, as ComfyUI does, and PEFT's the factors inside it, as PEFT does.

    Attributes:
        inner: the change that is brought back.
    """

    kind = "DoRA"
    needs_weight = True

    inner: Additive

    def __init__(self, inner: Additive) -> None:
        for name in ("name", "targets", "shape", "scale", "parts", "file"):
            object.__setattr__(self, name, getattr(inner, name))
        object.__setattr__(self, "inner", inner)

    @classmethod
    def rank_of(cls, sizes: Sizes) -> int | None:
        """Alpha is the inner change's."""
        return None

    @classmethod
    def misfit(cls, sizes: Sizes, shape: tuple[int, ...]) -> str:
        """See Change; of the magnitude alone."""
        k = math.prod(shape[1:])
        if "magnitude" in sizes:
            found = sizes["magnitude"]
            return "" if math.prod(found) == max(found, default=0) == shape[0] else f"magnitude {list(found)}"
        found = sizes["dora_scale"]
        rows, columns = found[:1] == shape[:1] and math.prod(found) == shape[0], found[:1] == (1,)
        if rows or (columns and math.prod(found) == shape[1] and (k == shape[1] or found[1:2] == shape[1:2])):
            return ""
        return f"dora_scale {list(found)} of a layer {list(shape)}"

    def at(self, strength: float, weight_of: WeightOf | None) -> Delta:
        """See Delta: rows of W and of the factors scaled; for magnitudes per column, one matrix."""
        weight = self._weight(weight_of)
        inside, outside = (strength, 1.0) if "magnitude" in self.parts else (1.0, strength)
        inner = self.inner.delta().times(inside)
        changed = weight + inner.dense(weight)
        magnitude = self._read("magnitude" if "magnitude" in self.parts else "dora_scale")
        if "magnitude" in self.parts or magnitude.shape[0] == self.shape[0]:
            ratio = magnitude.flatten() / changed.norm(dim=1).clamp_min(_TINY)
            up = None if inner.up is None else inner.up * ratio[:, None]
            full = None if inner.full is None else inner.full * ratio[:, None]
            return Delta(inner.down, up, ratio - 1, full).times(outside)
        by_column = changed.view(self.shape[0], self.shape[1], -1)
        ratio = magnitude.flatten() / by_column.norm(dim=(0, 2)).clamp_min(_TINY)
        full = (by_column * ratio[None, :, None]).reshape(weight.shape) - weight
        return Delta(full=full).times(outside)


class Replacement(Change):
    """PEFT's modules_to_save: a weight and a bias in place of the model's, at any strength, as PEFT does."""

    kind = "whole weight"
    needs_weight = True

    @classmethod
    def rank_of(cls, sizes: Sizes) -> int | None:
        """Alpha does not count."""
        return None

    @classmethod
    def misfit(cls, sizes: Sizes, shape: tuple[int, ...]) -> str:
        """See Change."""
        weight, bias = sizes.get("weight", shape), sizes.get("bias", shape[:1])
        if weight != shape:
            return f"weight {list(weight)}, want {list(shape)}"
        return "" if bias == shape[:1] else f"bias {list(bias)}, want {[shape[0]]}"

    def at(self, strength: float, weight_of: WeightOf | None) -> Delta:
        """The difference to the model's."""
        assert weight_of is not None
        full, bias = None, None
        if "weight" in self.parts:
            full = self._read("weight").flatten(1) - self._weight(weight_of)
        if "bias" in self.parts:
            (target,) = self.targets  # PEFT's names are the model's own
            bias = self._read("bias") - weight_of(f"{target.layer}.bias").float()
        return Delta(full=full, bias=bias)
