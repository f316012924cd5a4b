"""The changes of LoRA files as the two factors of one node, and as the dense change of one 16-bit weight.

A node stacks linears on N, and all of them read the same x. A LoRA's down factors are stacked on the rank, its up
factors stand block-diagonally: each in the rows of its linear, in the columns of its down factor. Where linears
share a down factor (a LoRA of a fused q/k/v, split up) they share its ranks.

    down [r, K]      A_q          up [N, r]      B_q  0   0      rows of q
                     A_k                          0  B_k  0      rows of k
                     A_v                          0   0  B_v     rows of v

What a DoRA multiplies rows with goes into the node's scale per row, and is exact. A change that is one full matrix
becomes the best factors of limited rank.

Letters: N output features, K input features, r the rank that a LoRA takes in this node.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from svdq_trt.base.errors import RangeError, ShapeError
from svdq_trt.contract.formats import R_MAX, R_MULTIPLE
from svdq_trt.lora.changes import Change
from svdq_trt.lora.delta import Delta, WeightOf, add
from svdq_trt.lora.names import Target
from svdq_trt.lora.read import LoraFile
from svdq_trt.quantize.lowrank import balance, top_singular

ERROR_MAX = 0.02  # part of a LoRA's change that may be cut off: less than 4-bit weights cost (5 % and more)
#: of changes that are full matrices: rank that they may take in a node, and the part that may be lost
FULL_RANK_MAX = 256  # up [N, 256] has as many bytes as the 4-bit weights of 1024 input features
FULL_ERROR_MAX = 0.5  # three quarters of the change's energy are kept
_FIX = "Keep the layer in 16 bit with --skip, where the change is exact."
_EXACT_SVD = 1024  # rows or columns up to which singular vectors are computed exactly
_POWER_ITERATIONS = 4  # for larger ones

ByLayer = Mapping[str, Sequence[tuple[Change, Target]]]


@dataclass(frozen=True)
class Loaded:
    """A LoRA file ready for use: its changes by layer, and the strength that was asked for."""

    file: LoraFile
    strength: float
    by_layer: ByLayer


@dataclass(frozen=True)
class NodeRows:
    """The rows of a node's members: layer -> its first row. A 16-bit linear counts as a node with itself as member.

    Attributes:
        name: of the node. n, k: N, K; zeros may follow the members' input features.
        columns: the node has only input features [start, stop) of its one member; None: all.
        rows: it has only these output features [start, stop) of its one member, in this order; None: all.
    """

    name: str
    first: Mapping[str, int]
    n: int
    k: int
    columns: tuple[int, int] | None = None
    rows: tuple[tuple[int, int], ...] | None = None

    def of(self, target: Target) -> Iterator[tuple[int, slice]]:
        """What of a target's rows the node has: each piece's first row in the change, and its rows in the node."""
        at, end = self.first[target.layer], target.start + target.rows
        for start, stop in self.rows or ((0, end),):
            low, high = max(start, target.start), min(stop, end)
            if low < high:
                yield target.source + low - target.start, slice(at + low - start, at + high - start)
            at += stop - start


def node_delta(by_layer: ByLayer, rows: NodeRows, strength: float = 1.0, weight_of: WeightOf | None = None) -> Delta:
    """One LoRA's change of a node at a strength, of the rows and columns that it has.

    Returns:
        down [r, K], up [N, r], with r = 0 where no change has factors; the other parts where there are any.
    """
    downs: list[Tensor] = []
    ups: list[Tensor] = []
    rest = Delta()
    made: dict[int, Delta] = {}
    changes = [pair for layer in rows.first for pair in by_layer.get(layer, ())]
    for change, source, at in ((change, *piece) for change, target in changes for piece in rows.of(target)):
        if id(change) not in made:
            made[id(change)] = change.at(strength, weight_of)
        delta = made[id(change)].rows(source, at.stop - at.start)
        if delta.down is not None and delta.up is not None:
            down = _columns(delta.down, rows)
            column = next((i for i, d in enumerate(downs) if torch.equal(d, down)), None)
            if column is None:
                column = len(downs)
                downs.append(down)
                ups.append(torch.zeros(rows.n, len(down)))
            ups[column][at] += delta.up
        rest = add(rest, _in_node(delta, rows, at))
    down = torch.cat(downs) if downs else torch.zeros(0, rows.k)
    up = torch.cat(ups, 1) if ups else torch.zeros(rows.n, 0)
    return Delta(down, up, rest.row_scale, rest.full, rest.bias)


def _columns(matrix: Tensor, rows: NodeRows) -> Tensor:
    """[..., K]: the node's columns of a matrix, with zeros where its members have fewer."""
    part = matrix[:, slice(*rows.columns)] if rows.columns else matrix
    return torch.nn.functional.pad(part, (0, rows.k - part.shape[1]))


def _in_node(delta: Delta, rows: NodeRows, at: slice) -> Delta:
    """What is no pair of factors, in the node's rows and columns."""

    def spread(tensor: Tensor | None) -> Tensor | None:
        if tensor is None:
            return None
        whole = torch.zeros(rows.n, *tensor.shape[1:])
        whole[at] = tensor
        return whole

    full = None if delta.full is None else _columns(delta.full, rows)
    bias = None if rows.columns and rows.columns[0] else delta.bias  # it goes with feature 0
    return Delta(row_scale=spread(delta.row_scale), full=spread(full), bias=spread(bias))


def to_act(down: Tensor, up: Tensor, dtype: torch.dtype, name: str) -> tuple[Tensor, Tensor]:
    """Factors down [r, K], up [N, r] in the act dtype.

    They are balanced before they are rounded, so that neither leaves f16's range unless their product does.

    Raises:
        RangeError: a value that overflows the act dtype.
    """
    if len(down):
        up, down = balance(up, down)
    up, down = up.to(dtype), down.to(dtype)
    if not (up.isfinite().all() and down.isfinite().all()):
        raise RangeError(name, f"a LoRA that overflows {dtype}", "finite values", "Check the file.")
    return down, up


def unit_factors(by_layer: ByLayer, rows: NodeRows, dtype: torch.dtype, room: int) -> tuple[Tensor, Tensor, float]:
    """One LoRA's factors in a node at strength 1: down [r, K], up [N, r] in the act dtype; r = 0 where it has none.

    Args:
        room: rank that there is. by_layer: changes that need no weight and change no bias.

    Returns:
        down, up, and the part of the full matrices that is lost.

    Raises:
        RangeError: see to_act. ShapeError: see approximate.
    """
    delta = node_delta(by_layer, rows)
    down, up = to_act(*_factors(delta), dtype, rows.name)
    if delta.full is None:
        return down, up, 0.0
    fix = "Build the engine with more --lora-slots, or the LoRA in with --lora."
    more_down, more_up, error = approximate(delta.full, room - len(down), dtype, rows.name, fix)
    return torch.cat([down, more_down]), torch.cat([up, more_up], 1), error


def _factors(delta: Delta) -> tuple[Tensor, Tensor]:
    assert delta.down is not None and delta.up is not None
    return delta.down, delta.up


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
        row_scale: [N] f32, one less than the factor of each row of the codes' part; up has it already. None: one.
        bias: [N] f32 to be added to the bias; None: nothing.
    """

    down: Tensor
    up: Tensor
    error: float = 0.0
    row_scale: Tensor | None = None
    bias: Tensor | None = None


def extend(
    down: Tensor, up: Tensor, loras: Sequence[Loaded], rows: NodeRows, weight_of: WeightOf | None = None
) -> Extended:
    """Append LoRAs to a node's low-rank branch down [R, K], up [N, R]; the rank is padded with zeros.

    A rank above what the kernels take, as where many members share a node, is cut to the largest singular values.

    Args:
        weight_of: the model's 16-bit weights, for changes that need them.

    Raises:
        ShapeError: cutting would leave out more than ERROR_MAX; or see approximate. RangeError: see to_act.
    """
    downs, ups, error, rest = [down], [up], 0.0, Delta()
    for lora in loras:
        for needs_weight in (False, True):
            some = _those(lora.by_layer, rows, needs_weight)
            if not some:
                continue
            # Factors at strength 1 are rounded before the strength is, so that slots have the same bits.
            inside, outside = (lora.strength, 1.0) if needs_weight else (1.0, lora.strength)
            delta = node_delta(some, rows, inside, weight_of)
            own_down, own_up = to_act(*_factors(delta), down.dtype, rows.name)
            downs.append(own_down)
            ups.append(at_strength(own_up, outside, rows.name))
            rest = add(rest, Delta(row_scale=delta.row_scale, full=delta.full, bias=delta.bias).times(outside))
    if rest.row_scale is not None:
        ups[0] = (up.float() * (1 + rest.row_scale[:, None])).to(up.dtype)
    if rest.full is not None:
        own_down, own_up, error = approximate(rest.full, FULL_RANK_MAX, down.dtype, rows.name, _FIX)
        downs.append(own_down)
        ups.append(own_up)
    rank, room = sum(len(d) for d in downs), (R_MAX - len(down)) // R_MULTIPLE * R_MULTIPLE
    if rank == len(down):
        return Extended(down, ups[0], 0.0, rest.row_scale, rest.bias)
    if rank > len(down) + room:
        cut_down, cut_up, lost = cut(torch.cat(downs[1:]), torch.cat(ups[1:], 1), room)
        if lost > ERROR_MAX:
            raise ShapeError(
                rows.name,
                f"rank {rank} with the LoRAs, and {100 * lost:.0f} % of them lost without",
                f"at most {R_MAX}",
                "Use fewer LoRAs, or of lower rank.",
            )
        downs, ups, rank, error = [down, cut_down], [ups[0], cut_up], len(down) + len(cut_down), max(error, lost)
    padding = -rank % R_MULTIPLE
    downs.append(down.new_zeros(padding, rows.k))
    ups.append(up.new_zeros(rows.n, padding))
    return Extended(torch.cat(downs), torch.cat(ups, 1), error, rest.row_scale, rest.bias)


def _those(by_layer: ByLayer, rows: NodeRows, needs_weight: bool) -> ByLayer:
    found = {
        layer: [pair for pair in by_layer.get(layer, ()) if pair[0].needs_weight is needs_weight]
        for layer in rows.first
    }
    return {layer: pairs for layer, pairs in found.items() if pairs}


def approximate(full: Tensor, most: int, dtype: torch.dtype, name: str, fix: str) -> tuple[Tensor, Tensor, float]:
    """The best factors of a change [N, K], of the smallest rank (a multiple of 16) that loses less than ERROR_MAX.

    Args:
        most: rank that they may have. name: of the node. fix: what helps where that is too little.

    Returns:
        down [r, K], up [N, r] in the act dtype, and the part that is lost, relative (Frobenius).

    Raises:
        ShapeError: more than FULL_ERROR_MAX is lost. RangeError: see to_act.
    """
    exact, most = min(full.shape) <= _EXACT_SVD, max(most, 0)
    up, down = top_singular(full, max(most, 1), 0 if exact else _POWER_ITERATIONS)
    up, down = up[:, :most], down[:most]
    kept = (up.double().norm(dim=0) * down.double().norm(dim=1)).square().cumsum(0)
    total = float(full.double().square().sum())
    lost = [(max(0.0, 1 - float(kept[r - 1]) / total) if total else 0.0) ** 0.5 for r in range(1, len(kept) + 1)]
    rank = next((r for r in range(R_MULTIPLE, len(lost), R_MULTIPLE) if lost[r - 1] <= ERROR_MAX), len(lost))
    error = lost[rank - 1] if rank else float(total > 0)
    if error > FULL_ERROR_MAX:
        raise ShapeError(
            name,
            f"a change of full rank of which rank {rank} loses {100 * error:.0f} %",
            f"at most {100 * FULL_ERROR_MAX:.0f} %",
            fix,
        )
    return *to_act(down[:rank], up[:, :rank], dtype, name), error


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


def merge_dense(weight: Tensor, layer: str, loras: Sequence[Loaded], weight_of: WeightOf | None = None) -> Tensor:
    """Add LoRAs to a 16-bit weight [N, K] or [N, C, kh, kw]: in f32, rounded once.

    Args:
        weight_of: the model's weights without LoRAs, for changes that need them.

    Raises:
        RangeError: the sum overflows the weight's dtype.
    """
    own = weight.float().flatten(1)
    total = own.clone()
    for change, target, strength in _active(layer, loras):
        delta = change.at(strength, weight_of).rows(target.source, target.rows)
        at = slice(target.start, target.start + target.rows)
        total[at] += delta.dense(own[at])
    return _rounded(total.view(weight.shape), weight, layer, "weight")


def merge_bias(bias: Tensor | None, layer: str, loras: Sequence[Loaded], weight_of: WeightOf | None) -> Tensor | None:
    """Add LoRAs to a 16-bit layer's bias [N], as `merge_dense`.

    Raises:
        ShapeError: a change of a bias that the layer does not have. RangeError: see merge_dense.
    """
    total = None if bias is None else bias.float().clone()
    changed = False
    for change, target, strength in _active(layer, loras):
        if not change.has_bias:
            continue
        delta = change.at(strength, weight_of).rows(target.source, target.rows)
        if delta.bias is not None:
            if total is None:
                raise ShapeError(f"{change.file.path}: '{change.name}'", "a change of a bias", "a layer that has one")
            total[target.start : target.start + target.rows] += delta.bias
            changed = True
    return bias if bias is None or total is None or not changed else _rounded(total, bias, layer, "bias")


def _active(layer: str, loras: Sequence[Loaded]) -> list[tuple[Change, Target, float]]:
    """The changes of a layer with their strengths, without those at strength 0."""
    return [(c, t, lora.strength) for lora in loras if lora.strength for c, t in lora.by_layer.get(layer, ())]


def _rounded(total: Tensor, like: Tensor, layer: str, part: str) -> Tensor:
    merged = total.to(like.dtype)
    if not merged.isfinite().all():
        raise RangeError(layer, f"its {part} with the LoRAs overflows {like.dtype}", "finite values")
    return like if torch.equal(merged, like) else merged
