"""Entries of LoRA files as the two factors of one node, and as the dense change of one 16-bit weight.

A node stacks linears on N, and all of them read the same x. A LoRA's down factors are stacked on the rank, its up
factors stand block-diagonally: each in the rows of its linear, in the columns of its down factor. Where linears
share a down factor (a LoRA of a fused q/k/v, split up) they share its ranks.

    down [r, K]      A_q          up [N, r]      B_q  0   0      rows of q
                     A_k                          0  B_k  0      rows of k
                     A_v                          0   0  B_v     rows of v

Letters: N output features, K input features, r the rank that a LoRA takes in this node.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from svdq_trt.base.errors import RangeError, ShapeError
from svdq_trt.contract.formats import R_MAX, R_MULTIPLE
from svdq_trt.lora.names import Target
from svdq_trt.lora.read import Entry, LoraFile
from svdq_trt.quantize.lowrank import balance

ERROR_MAX = 0.02  # part of a LoRA's change that may be cut off: less than 4-bit weights cost (5 % and more)

ByLayer = Mapping[str, Sequence[tuple[Entry, Target]]]


@dataclass(frozen=True)
class Loaded:
    """A LoRA file ready for use: its entries by layer, and the strength that was asked for."""

    file: LoraFile
    strength: float
    by_layer: ByLayer


@dataclass(frozen=True)
class NodeRows:
    """The rows of a node's members: layer -> its first row. A 16-bit linear counts as a node with itself as member.

    Attributes:
        name: of the node. n, k: N, K.
        columns: the node has only input features [start, stop) of its one member; None: all.
    """

    name: str
    first: Mapping[str, int]
    n: int
    k: int
    columns: tuple[int, int] | None = None


def unit_factors(by_layer: ByLayer, rows: NodeRows, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """One LoRA's factors in a node at strength 1: down [r, K], up [N, r] in the act dtype; r = 0 where it has none.

    Factors are balanced before they are rounded, so that neither leaves f16's range unless their product does.

    Raises:
        RangeError: a value that overflows the act dtype, or NaN or Inf in the file.
    """
    downs: list[Tensor] = []
    ups: list[Tensor] = []
    for layer, first in rows.first.items():
        for entry, target in by_layer.get(layer, ()):
            down, up = entry.down(), entry.up()
            if rows.columns:
                down = down[:, slice(*rows.columns)]
            column = next((i for i, d in enumerate(downs) if torch.equal(d, down)), None)
            if column is None:
                column = len(downs)
                downs.append(down)
                ups.append(torch.zeros(rows.n, len(down)))
            at = first + target.start
            ups[column][at : at + target.rows] += up[target.source : target.source + target.rows]
    if not downs:
        return torch.zeros(0, rows.k, dtype=dtype), torch.zeros(rows.n, 0, dtype=dtype)
    up, down = balance(torch.cat(ups, 1), torch.cat(downs))
    up, down = up.to(dtype), down.to(dtype)
    if not (up.isfinite().all() and down.isfinite().all()):
        raise RangeError(rows.name, f"a LoRA that overflows {dtype}", "finite values", "Check the file.")
    return down, up


def at_strength(up: Tensor, strength: float, name: str) -> Tensor:
    """The factor up · strength in up's dtype, rounded once. Raises RangeError where it overflows."""
    scaled: Tensor = up * strength
    if not scaled.isfinite().all():
        raise RangeError(name, f"a LoRA at strength {strength:g} overflows {up.dtype}", "finite values")
    return scaled


@dataclass(frozen=True)
class Extended:
    """A node's branch with LoRAs in it: down [R, K], up [N, R].

    Attributes:
        error: the part of the LoRAs' change that a branch of limited rank leaves out, relative (Frobenius); 0: nothing.
    """

    down: Tensor
    up: Tensor
    error: float = 0.0


def extend(down: Tensor, up: Tensor, loras: Sequence[Loaded], rows: NodeRows) -> Extended:
    """Append LoRAs to a node's low-rank branch down [R, K], up [N, R]; the rank is padded with zeros.

    A rank above what the kernels take, as where many members share a node, is cut to the largest singular values.

    Raises:
        ShapeError: cutting would leave out more than ERROR_MAX. RangeError: see unit_factors.
    """
    downs, ups, error = [down], [up], 0.0
    for lora in loras:
        own_down, own_up = unit_factors(lora.by_layer, rows, down.dtype)
        downs.append(own_down)
        ups.append(at_strength(own_up, lora.strength, rows.name))
    rank, room = sum(len(d) for d in downs), (R_MAX - len(down)) // R_MULTIPLE * R_MULTIPLE
    if rank == len(down):
        return Extended(down, up)
    if rank > len(down) + room:
        cut_down, cut_up, error = cut(torch.cat(downs[1:]), torch.cat(ups[1:], 1), room)
        if error > ERROR_MAX:
            raise ShapeError(
                rows.name,
                f"rank {rank} with the LoRAs, and {100 * error:.0f} % of them lost without",
                f"at most {R_MAX}",
                "Use fewer LoRAs, or of lower rank.",
            )
        downs, ups, rank = [down, cut_down], [up, cut_up], len(down) + len(cut_down)
    padding = -rank % R_MULTIPLE
    downs.append(down.new_zeros(padding, rows.k))
    ups.append(up.new_zeros(rows.n, padding))
    return Extended(torch.cat(downs), torch.cat(ups, 1), error)


def cut(down: Tensor, up: Tensor, rank: int) -> tuple[Tensor, Tensor, float]:
    """The best factors of rank `rank` for up @ down, in their dtype, and their relative error."""
    q_up, r_up = torch.linalg.qr(up.float())
    q_down, r_down = torch.linalg.qr(down.float().T)
    u, s, vh = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)  # SVD of the small matrix only
    total = float(s.double().square().sum())
    error = (float(s[rank:].double().square().sum()) / total) ** 0.5 if total else 0.0
    root = s[:rank].sqrt()
    new_up, new_down = balance(q_up @ (u[:, :rank] * root), (root[:, None] * vh[:rank]) @ q_down.T)
    return new_down.to(down.dtype), new_up.to(up.dtype), error


def merge_dense(weight: Tensor, layer: str, loras: Sequence[Loaded]) -> Tensor:
    """Add LoRAs to a 16-bit weight [N, K] or [N, C, kh, kw]: in f32, rounded once.

    Raises:
        RangeError: the sum overflows the weight's dtype.
    """
    total = weight.float().flatten(1).clone()
    touched = False
    for lora in loras:
        for entry, target in lora.by_layer.get(layer, ()) if lora.strength else ():
            up = entry.up()[target.source : target.source + target.rows]
            total[target.start : target.start + target.rows].addmm_(up, entry.down(), alpha=lora.strength)
            touched = True
    if not touched:
        return weight
    merged = total.view(weight.shape).to(weight.dtype)
    if not merged.isfinite().all():
        raise RangeError(layer, f"its weight with the LoRAs overflows {weight.dtype}", "finite values")
    return merged
