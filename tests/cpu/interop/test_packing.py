"""Packed orders against the closed-form index formulas, element by element."""

import numpy as np
import pytest
import torch

from svdq_trt.contract.numerics import pack_nibbles
from svdq_trt.interop import packing as f
from svdq_trt.interop.packing import FRAGMENTS, ROWS, TILES


def ramp(*shape, dtype=torch.int16):
    """Every element its own value (mod 2^16)."""
    return torch.arange(int(np.prod(shape))).to(dtype).view(shape)


@pytest.mark.parametrize("n,k", [(128, 128), (256, 64), (384, 192)])
def test_codes(n, k):
    codes = torch.randint(0, 16, (n, k), generator=torch.Generator().manual_seed(n + k), dtype=torch.uint8)
    words = FRAGMENTS.codes.pack(pack_nibbles(codes)).numpy().view("<u4").ravel()
    for row in range(n):
        nt, p, ns, nl = row // 128, row // 16 % 8, row // 8 % 2, row % 8
        for col in range(k):
            kt, ks, kl, kk = col // 64, col // 32 % 2, col // 8 % 4, col % 8
            word = (((nt * (k // 64) + kt) * 8 + p) * 32 + nl * 4 + kl) * 4 + ns * 2 + ks
            assert words[word] >> (4 * kk) & 15 == codes[row, col], (row, col)


@pytest.mark.parametrize("groups,n", [(1, 128), (3, 256)])
def test_vectors(groups, n):
    values = ramp(groups, n)
    flat = FRAGMENTS.scales.pack(values).ravel()
    for g in range(groups):
        for c in range(n):
            nt, hi, pair, lo, e = c // 128, c // 16 % 8, c // 8 % 2, c // 2 % 4, c % 2
            assert flat[(nt * groups + g) * 128 + hi * 16 + lo * 4 + pair * 2 + e] == values[g, c]


def test_first_channels_in_memory():
    assert FRAGMENTS.channels.pack(ramp(128))[:8].tolist() == [0, 1, 8, 9, 2, 3, 10, 11]


def test_micro_scales():
    k, n = 128, 256
    scales = torch.randint(-128, 128, (k // 64, n, 4), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    packed = FRAGMENTS.micro.pack(scales)
    assert packed.shape == (k // 16, n)
    flat = packed.ravel()
    for c in range(n):
        nt, p, a, b = c // 128, c // 32 % 4, c // 8 % 4, c % 8
        for g in range(k // 16):
            kt, j = g // 4, g % 4
            assert flat[(nt * (k // 64) + kt) * 512 + (b * 4 + a) * 16 + p * 4 + j] == scales[kt, c, j]


@pytest.mark.parametrize("r,c", [(16, 128), (32, 128), (48, 256)])
def test_low_rank(r, c):
    down, up = ramp(r, c), ramp(c, r)
    packed_down, packed_up = FRAGMENTS.down.pack(down), FRAGMENTS.up.pack(up)
    assert packed_down.shape == packed_up.shape == (c, r)

    def at(packed, row, col, tile):
        ns, nl, ks, kl, e = row // 8, row % 8, col // 8, col // 2 % 4, col % 2
        return packed.ravel()[tile * 256 + (nl * 4 + kl) * 8 + ns * 4 + ks * 2 + e]

    for i in range(r):
        for j in range(c):
            tile = (j // 16) * (r // 16) + i // 16
            assert at(packed_down, i % 16, j % 16, tile) == down[i, j]
            assert at(packed_up, j % 16, i % 16, tile) == up[j, i]


def test_awq():
    n, k = 8, 128
    codes = torch.randint(0, 16, (n, k), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    packed = f.pack_awq(codes)
    assert packed.shape == (n // 4, k // 2) and packed.dtype == torch.int32
    words = packed.numpy().view("<u2").ravel()
    for row in range(n):
        for col in range(k):
            half, q, i = col // 32 % 2, col // 8 % 4, col % 8
            word = ((row // 4 * (k // 64) + col // 64) * 4 + row % 4) * 16 + half * 8 + i
            assert words[word] >> (4 * q) & 15 == codes[row, col]


@pytest.mark.parametrize("packing", [FRAGMENTS, ROWS, TILES], ids=["fragments", "rows", "tiles"])
def test_unpacking_is_the_inverse(packing):
    for order, shape in (
        (packing.codes, (256, 96)),
        (packing.scales, (5, 384)),
        (packing.micro, (3, 256, 4)),
        (packing.channels, (256,)),
        (packing.down, (48, 256)),
        (packing.up, (256, 48)),
    ):
        stored = order.pack(ramp(*shape))
        assert stored.shape == order.stored(shape) and torch.equal(order.unpack(stored, shape), ramp(*shape))
    awq = torch.randint(0, 16, (256, 192), generator=torch.Generator().manual_seed(2), dtype=torch.uint8)
    assert torch.equal(f.unpack_awq(f.pack_awq(awq)), awq)


def test_tiles():
    """comfy-kitchen's: [N/128, K/64, 32, 4 rows of 32 bytes], and rows of 128 for scales and the up factor."""
    codes, scales, up = ramp(256, 96), ramp(3, 256), ramp(256, 16)
    tiles, scale_tiles, up_tiles = TILES.codes.pack(codes), TILES.scales.pack(scales), TILES.up.pack(up)
    assert (tiles.shape, scale_tiles.shape, up_tiles.shape) == ((2, 3, 32, 128), (2, 3, 128), (2, 16, 128))
    for row in range(0, 256, 7):
        assert all(
            tiles[row // 128, c // 32, row % 128 // 4, row % 4 * 32 + c % 32] == codes[row, c] for c in range(96)
        )
        assert all(scale_tiles[row // 128, g, row % 128] == scales[g, row] for g in range(3))
        assert all(up_tiles[row // 128, r, row % 128] == up[row, r] for r in range(16))
