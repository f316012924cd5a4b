"""Orders of packed tensors: from a logical element to its place in a stored tensor, and back.

Every order is one permutation of the axes of a reshaped tensor, so packing and unpacking are exact inverses.
Letters: N output features, K input features, R rank. Nunchaku's fragments want N % 128 == 0, K % 64 == 0, R % 16 == 0.

    codes      n = nt·128 + p·16 + ns·8 + nl, k = kt·64 + ks·32 + kl·8 + kk
               32-bit word [nt][kt][p][nl][kl][ns][ks], kk the nibble: an MMA fragment per lane nl·4 + kl
    scales     n = nt·128 + hi·16 + pair·8 + lo·2 + e, group g: element [nt][g][hi][lo][pair][e]
    channels   the same with one group; of smoothing, "n" is the input channel
    micro      n = nt·128 + p·32 + a·8 + b, k = kt·64 + j·16: byte [nt][kt][b][a][p][j]
    low rank   16x16 tiles [channel][rank], in a tile row = ns·8 + nl, column = ks·8 + kl·2 + e:
               element [nl][kl][ns][ks][e]; a row is a rank in `down`, a channel in `up`
    awq        row n = nt·4 + r, k = kt·64 + half·32 + q·8 + i: 16-bit word [nt][kt][r][half][i], q the nibble

A byte of two codes is the same byte in both orders (kk and k have equal parity), so codes move as bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

TILE = 128  # channels of a tile: N, and K after padding
STEP = 64  # input channels of one tile of codes
AWQ_ROWS = 4
Shape = tuple[int, ...]


def padded(size: int, multiple: int = TILE) -> int:
    """`size` rounded up to a multiple."""
    return -(-size // multiple) * multiple


@dataclass(frozen=True)
class Order:
    """A permutation of the axes of a tensor reshaped to `axes(logical shape)`.

    Attributes:
        stored: logical shape -> shape in the file.
    """

    axes: Callable[[Sequence[int]], Shape]
    order: Shape
    stored: Callable[[Sequence[int]], Shape] = tuple

    def pack(self, logical: Tensor) -> Tensor:
        """Logical tensor -> the tensor of the file, contiguous."""
        shuffled = logical.reshape(self.axes(logical.shape)).permute(self.order)
        return shuffled.reshape(self.stored(logical.shape)).contiguous()

    def unpack(self, stored: Tensor, shape: Sequence[int]) -> Tensor:
        """Tensor of any shape in memory order -> the logical tensor of `shape`, contiguous."""
        axes = self.axes(shape)
        back = [self.order.index(i) for i in range(len(axes))]
        return stored.reshape([axes[i] for i in self.order]).permute(back).reshape(tuple(shape)).contiguous()


@dataclass(frozen=True)
class Packing:
    """The orders of a maker's tensors, by logical shapes.

    Attributes:
        codes: row-major codes [N, K/2] int8, low nibble = even k. scales: one per group and channel, [K/64, N].
        micro: e4m3 bytes [K/64, N, 4]. channels: smoothing [K] or bias [N]. down: [R, K]. up: [N, R].
    """

    codes: Order
    scales: Order
    micro: Order
    channels: Order
    down: Order
    up: Order


def _transposed(shape: Sequence[int]) -> Shape:
    return shape[1], shape[0]


def _by_group(shape: Sequence[int]) -> Shape:
    return 4 * shape[0], shape[1]


def _tiles_of_16(shape: Sequence[int]) -> Shape:
    return shape[0] // 16, 2, 8, shape[1] // 16, 2, 4, 2


#: nunchaku's, of its C++ engine, its Python modules, Nunchaku Lite and cache-dit
FRAGMENTS = Packing(
    codes=Order(lambda s: (s[0] // TILE, 8, 2, 8, s[1] // 32, 2, 4, 4), (0, 4, 1, 3, 6, 2, 5, 7)),
    scales=Order(lambda s: (s[0], s[1] // TILE, 8, 2, 4, 2), (1, 0, 2, 4, 3, 5)),
    micro=Order(lambda s: (s[0], s[1] // TILE, 4, 4, 8, 4), (1, 0, 4, 3, 2, 5), _by_group),
    channels=Order(lambda s: (s[0] // TILE, 8, 2, 4, 2), (0, 1, 3, 2, 4)),
    down=Order(_tiles_of_16, (3, 0, 2, 5, 1, 4, 6), _transposed),
    up=Order(_tiles_of_16, (0, 3, 2, 5, 1, 4, 6)),
)
_PLAIN = Order(tuple, (0, 1))
#: vLLM-Omni's, and the natural layout of comfy-kitchen
ROWS = Packing(
    codes=_PLAIN,
    scales=_PLAIN,
    micro=Order(tuple, (0, 2, 1), _by_group),
    channels=Order(tuple, (0,)),
    down=Order(tuple, (1, 0), _transposed),
    up=_PLAIN,
)
#: comfy-kitchen's tiles: 128 rows and 64 columns of codes, the rows by four
TILES = Packing(
    codes=Order(
        lambda s: (s[0] // TILE, 32, 4, s[1] // 32, 32),
        (0, 3, 1, 2, 4),
        lambda s: (s[0] // TILE, s[1] // 32, 32, 128),
    ),
    scales=Order(lambda s: (s[0], s[1] // TILE, TILE), (1, 0, 2), lambda s: (s[1] // TILE, s[0], TILE)),
    micro=ROWS.micro,
    channels=ROWS.channels,
    down=ROWS.down,
    up=Order(lambda s: (s[0] // TILE, TILE, s[1]), (0, 2, 1), lambda s: (s[0] // TILE, s[1], TILE)),
)
_AWQ = Order(lambda s: (s[0] // AWQ_ROWS, AWQ_ROWS, s[1] // STEP, 2, 4, 8), (0, 2, 1, 3, 5, 4))


def pack_awq(codes: Tensor) -> Tensor:
    """Codes [N, K] uint8 in 0..15 -> int32 [N/4, K/2]."""
    n, k = codes.shape
    pairs = _AWQ.pack(codes).view(-1, 2)
    return (pairs[:, 0] | (pairs[:, 1] << 4)).view(torch.int32).view(n // AWQ_ROWS, k // 2)


def unpack_awq(stored: Tensor) -> Tensor:
    """Inverse of pack_awq."""
    rows, half_k = stored.shape
    packed = stored.contiguous().view(torch.uint8).reshape(-1, 1)
    return _AWQ.unpack(torch.cat((packed & 0xF, packed >> 4), 1), (AWQ_ROWS * rows, 2 * half_k))
