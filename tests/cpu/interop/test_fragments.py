"""Packed orders against the closed-form index formulas, element by element."""

import numpy as np
import pytest
import torch

from svdq_trt.contract.numerics import pack_nibbles, unpack_nibbles
from svdq_trt.interop import fragments as f


def ramp(*shape, dtype=torch.int16):
    """Every element its own value (mod 2^16)."""
    return torch.arange(int(np.prod(shape))).to(dtype).view(shape)


@pytest.mark.parametrize("n,k", [(128, 128), (256, 64), (384, 192)])
def test_codes(n, k):
    codes = torch.randint(0, 16, (n, k), generator=torch.Generator().manual_seed(n + k), dtype=torch.uint8)
    words = f.pack_codes(pack_nibbles(codes)).numpy().view("<u4").ravel()
    for row in range(n):
        nt, p, ns, nl = row // 128, row // 16 % 8, row // 8 % 2, row % 8
        for col in range(k):
            kt, ks, kl, kk = col // 64, col // 32 % 2, col // 8 % 4, col % 8
            word = (((nt * (k // 64) + kt) * 8 + p) * 32 + nl * 4 + kl) * 4 + ns * 2 + ks
            assert words[word] >> (4 * kk) & 15 == codes[row, col], (row, col)


@pytest.mark.parametrize("groups,n", [(1, 128), (3, 256)])
def test_vectors(groups, n):
    values = ramp(groups, n)
    flat = f.pack_vectors(values).ravel()
    for g in range(groups):
        for c in range(n):
            nt, hi, pair, lo, e = c // 128, c // 16 % 8, c // 8 % 2, c // 2 % 4, c % 2
            assert flat[(nt * groups + g) * 128 + hi * 16 + lo * 4 + pair * 2 + e] == values[g, c]


def test_first_channels_in_memory():
    assert f.pack_vector(ramp(128))[:8].tolist() == [0, 1, 8, 9, 2, 3, 10, 11]


def test_micro_scales():
    k, n = 128, 256
    scales = torch.randint(-128, 128, (k // 64, n, 4), dtype=torch.int8, generator=torch.Generator().manual_seed(0))
    packed = f.pack_micro(scales)
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
    packed_down, packed_up = f.pack_down(down), f.pack_up(up)
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


def test_unpacking_is_the_inverse():
    g = torch.Generator().manual_seed(2)
    codes = pack_nibbles(torch.randint(0, 16, (256, 192), generator=g))
    assert torch.equal(f.unpack_codes(f.pack_codes(codes)), codes)
    for pack, unpack, shape in (
        (f.pack_vectors, f.unpack_vectors, (5, 384)),
        (f.pack_down, f.unpack_down, (48, 256)),
        (f.pack_up, f.unpack_up, (256, 48)),
        (f.pack_vector, f.unpack_vector, (256,)),
    ):
        assert torch.equal(unpack(pack(ramp(*shape))), ramp(*shape))
    micro = torch.randint(-128, 128, (3, 256, 4), dtype=torch.int8, generator=g)
    assert torch.equal(f.unpack_micro(f.pack_micro(micro)), micro)
    awq = unpack_nibbles(codes)
    assert torch.equal(f.unpack_awq(f.pack_awq(awq)), awq)
