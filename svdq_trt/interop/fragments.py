"""Nunchaku's tensor orders: from a logical element to its place in a packed tensor, and back.

Every order is one permutation of the axes of a reshaped tensor, so packing and unpacking are exact inverses.
Letters: N output features, K input features, R rank. Padded: N % 128 == 0, K % 64 == 0, R % 16 == 0.

    codes      n = nt·128 + p·16 + ns·8 + nl, k = kt·64 + ks·32 + kl·8 + kk
               32-bit word [nt][kt][p][nl][kl][ns][ks], kk the nibble: an MMA fragment per lane nl·4 + kl
    vectors    n = nt·128 + hi·16 + pair·8 + lo·2 + e, group g: element [nt][g][hi][lo][pair][e]
               (bias and smooth: one group; of smooth, "n" is the input channel)
    micro      n = nt·128 + p·32 + a·8 + b, k = kt·64 + j·16: byte [nt][kt][b][a][p][j]
    low rank   16x16 tiles [channel][rank], in a tile row = ns·8 + nl, column = ks·8 + kl·2 + e:
               element [nl][kl][ns][ks][e]; a row is a rank in `down`, a channel in `up`
    awq        row n = nt·4 + r, k = kt·64 + half·32 + q·8 + i: 16-bit word [nt][kt][r][half][i], q the nibble

A byte of two codes is the same byte in both orders (kk and k have equal parity), so codes move as bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

TILE = 128  # channels of a tile: N, and K after padding
STEP = 64  # input channels of one tile of codes
AWQ_ROWS = 4


def padded(size: int, multiple: int = TILE) -> int:
    """`size` rounded up to a multiple."""
    return -(-size // multiple) * multiple


class _Order:
    """A permutation of the axes of a tensor reshaped to `axes(shape)`."""

    def __init__(self, axes: Callable[[Sequence[int]], tuple[int, ...]], order: tuple[int, ...]) -> None:
        self._axes, self._order = axes, order
        self._back = tuple(order.index(i) for i in range(len(order)))

    def pack(self, logical: Tensor) -> Tensor:
        """Logical tensor -> flat tensor in memory order."""
        return logical.reshape(self._axes(logical.shape)).permute(self._order).reshape(-1)

    def unpack(self, stored: Tensor, shape: Sequence[int]) -> Tensor:
        """Tensor of any shape in memory order -> the logical tensor of `shape`, contiguous."""
        axes = self._axes(shape)
        return stored.reshape([axes[i] for i in self._order]).permute(self._back).reshape(tuple(shape)).contiguous()


_CODES = _Order(lambda s: (s[0] // TILE, 8, 2, 8, s[1] // 32, 2, 4, 4), (0, 4, 1, 3, 6, 2, 5, 7))
_VECTORS = _Order(lambda s: (s[0], s[1] // TILE, 8, 2, 4, 2), (1, 0, 2, 4, 3, 5))
_MICRO = _Order(lambda s: (s[0], s[1] // TILE, 4, 4, 8, 4), (1, 0, 4, 3, 2, 5))
_DOWN = _Order(lambda s: (s[0] // 16, 2, 8, s[1] // 16, 2, 4, 2), (3, 0, 2, 5, 1, 4, 6))
_UP = _Order(lambda s: (s[0] // 16, 2, 8, s[1] // 16, 2, 4, 2), (0, 3, 2, 5, 1, 4, 6))
_AWQ = _Order(lambda s: (s[0] // AWQ_ROWS, AWQ_ROWS, s[1] // STEP, 2, 4, 8), (0, 2, 1, 3, 5, 4))


def pack_codes(qweight: Tensor) -> Tensor:
    """Row-major codes [N, K/2] int8, low nibble = even k -> the same shape in fragment order."""
    return _CODES.pack(qweight).view(qweight.shape)


def unpack_codes(stored: Tensor) -> Tensor:
    """Inverse of pack_codes."""
    return _CODES.unpack(stored, stored.shape)


def pack_vectors(values: Tensor) -> Tensor:
    """Group-major values [G, N] of 16 bits -> [G, N] in fragment order."""
    return _VECTORS.pack(values).view(values.shape)


def unpack_vectors(stored: Tensor) -> Tensor:
    """Inverse of pack_vectors."""
    return _VECTORS.unpack(stored, stored.shape)


def pack_vector(values: Tensor) -> Tensor:
    """One value per channel, [N] -> [N] in fragment order."""
    return pack_vectors(values[None])[0]


def unpack_vector(stored: Tensor) -> Tensor:
    """Inverse of pack_vector."""
    return unpack_vectors(stored[None])[0]


def pack_micro(scales: Tensor) -> Tensor:
    """e4m3 bytes [K/64, N, 4] -> [K/16, N] in fragment order."""
    steps, n, four = scales.shape
    return _MICRO.pack(scales).view(four * steps, n)


def unpack_micro(stored: Tensor) -> Tensor:
    """Inverse of pack_micro."""
    groups, n = stored.shape
    return _MICRO.unpack(stored, (groups // 4, n, 4))


def pack_down(down: Tensor) -> Tensor:
    """[R, K] -> [K, R] in fragment order."""
    return _DOWN.pack(down).view(down.shape[1], down.shape[0])


def unpack_down(stored: Tensor) -> Tensor:
    """Inverse of pack_down."""
    return _DOWN.unpack(stored, (stored.shape[1], stored.shape[0]))


def pack_up(up: Tensor) -> Tensor:
    """[N, R] -> [N, R] in fragment order."""
    return _UP.pack(up).view(up.shape)


def unpack_up(stored: Tensor) -> Tensor:
    """Inverse of pack_up."""
    return _UP.unpack(stored, stored.shape)


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
