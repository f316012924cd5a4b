"""In which order a file of nunchaku's names holds its codes: fragments, as nunchaku does, or plain rows.

Other tools write nunchaku's names and shapes with row-major values, and nothing in the tensors says so. But a group's
scale comes from its largest weight, so nearly every group of the true order has a code of the largest magnitude; groups
of the wrong one mix parts of several, and some of them have none. In 200 synthetic layers (tests/cpu/interop/
test_order.py) the shares differ by 0.11 to 0.47 in favour of the true order where scales come from the absolute
maximum. They can't tell the orders of uniform weights (0.00 to 0.02), nor always where scales were searched (-0.03 to
0.47): that is unclear.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from svdq_trt.base.errors import UnsupportedError
from svdq_trt.contract import numerics
from svdq_trt.contract.formats import INT4, NVFP4, Format
from svdq_trt.interop.packing import FRAGMENTS, STEP, TILE, padded
from svdq_trt.interop.reader import Reader
from svdq_trt.interop.w4a4 import Rows

_JUDGED = 16  # layers whose order is looked at, evenly spaced: of a whole model they have millions of groups
_CLEAR = 0.065  # difference of the two shares: half-way between -0.03 and -0.11, see above


class Order(enum.Enum):
    """What the codes look like."""

    FRAGMENTS = "fragments"
    ROWS = "rows"
    UNCLEAR = "unclear"


class Stored(NamedTuple):
    """Codes of a file: the layer's name, its rows, K, and what N and K are padded to a multiple of."""

    name: str
    rows: Rows
    k: int
    tile: int


def check_order(reader: Reader, stored: Sequence[Stored], want: Order, declared: bool) -> None:
    """Refuse codes that lie in another order than `want`, and codes that may, unless the file declares its maker.

    Layers whose shape does not fit are left to the import, which names them; those of no whole tiles have one order.
    """
    found = [(layer, (layer.rows.total, padded(layer.k, max(layer.tile, STEP)) // 2)) for layer in stored]
    fitting = [(layer, shape) for layer, shape in found if _has(reader, f"{layer.name}.qweight", shape)]
    evidence = Evidence()
    for layer, shape in fitting[:: -(-len(fitting) // _JUDGED) or 1]:
        fmt = NVFP4 if reader.kind(f"{layer.name}.wscales") == "F8_E4M3" else INT4
        evidence.add(reader.take(f"{layer.name}.qweight", ("I8",), shape), fmt, layer.rows, layer.k)
    if evidence.order is want or (evidence.order is Order.UNCLEAR and declared):
        return
    got = {
        Order.ROWS: "codes in rows, as vLLM-Omni has them under nunchaku's names",
        Order.FRAGMENTS: "codes in nunchaku's order",
        Order.UNCLEAR: "no metadata, and codes that may lie in nunchaku's order or in rows",
    }[evidence.order]
    want_text = "nunchaku's order" if want is Order.FRAGMENTS else "rows, as the file declares"
    raise UnsupportedError(str(reader.where), got, want_text, "Use the maker's own file, with what declares it.")


def _has(reader: Reader, name: str, shape: tuple[int, ...]) -> bool:
    tiles = shape[0] % TILE == 0 and 2 * shape[1] % STEP == 0
    return tiles and reader.has(name) and reader.kind(name) == "I8" and reader.shape(name) == shape


class Evidence:
    """Groups counted over the layers of a file, with and without a largest code in either order."""

    def __init__(self) -> None:
        self._groups = self._fragments = self._rows = 0

    def add(self, stored: Tensor, fmt: Format, rows: Rows, k: int) -> None:
        """Count a layer: its qweight [N padded, K padded / 2] int8 as stored; K without padding."""
        fragment = _with_largest(FRAGMENTS.codes.unpack(stored, stored.shape), fmt, rows, k)
        self._groups += fragment.numel()
        self._fragments += int(fragment.sum())
        self._rows += int(_with_largest(stored, fmt, rows, k).sum())

    @property
    def order(self) -> Order:
        """What all layers together say."""
        difference = (self._fragments - self._rows) / max(self._groups, 1)
        if abs(difference) < _CLEAR:
            return Order.UNCLEAR
        return Order.FRAGMENTS if difference > 0 else Order.ROWS


def _with_largest(qweight: Tensor, fmt: Format, rows: Rows, k: int) -> Tensor:
    """[N, K/G] bool, of the whole groups that are no padding."""
    codes = numerics.unpack_nibbles(qweight)[rows.at, : k // fmt.weight_group * fmt.weight_group]
    largest = (codes & 7 == 7) if fmt.wscale_cols > 1 else ((codes ^ 8).to(torch.int8) - 8).abs() >= 7
    return numerics.grouped(largest, fmt.weight_group).any(-1)
