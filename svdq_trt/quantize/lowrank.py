"""The low-rank branch: top-R singular triplets of the smoothed weight, as two 16-bit factors."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from svdq_trt.contract.formats import F16_MAX

_T_HEADROOM = 16.0  # as that of x̂, see smooth.py
OVERSAMPLE = 8  # extra directions of the subspace iteration; Halko, Martinsson, Tropp 2011, section 4.2


def top_singular(w: Tensor, rank: int, power_iterations: int) -> tuple[Tensor, Tensor]:
    """Best rank-R factors of w [N, K]: (u [N, R], v [R, K]) with u @ v ~ w, singular values split evenly.

    power_iterations = 0 computes the exact SVD (fp64, by the eigenvectors of the smaller Gram matrix);
    otherwise a randomized subspace iteration in fp32 with a fixed seed, so results repeat.
    """
    rank = min(rank, *w.shape)
    u, s, vh = _exact(w, rank) if power_iterations == 0 else _subspace(w, rank, power_iterations)
    root = s.clamp_min(0).sqrt()
    return u * root, root[:, None] * vh


def _exact(w: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    w64 = w.double()
    if w.shape[0] < w.shape[1]:
        u, s, vh = _exact(w.T, rank)
        return vh.T, s, u.T
    _, vectors = torch.linalg.eigh(w64.T @ w64)  # ascending
    v = vectors[:, -rank:].flip(1)
    us = w64 @ v
    s = us.norm(dim=0)
    return (us / s.clamp_min(1e-300)).float(), s.float(), v.T.float()


def _subspace(w: Tensor, rank: int, iterations: int) -> tuple[Tensor, Tensor, Tensor]:
    width = min(rank + OVERSAMPLE, *w.shape)
    generator = torch.Generator(device="cpu").manual_seed(0)
    q = torch.randn(w.shape[1], width, generator=generator).to(w.device)
    q = orthonormal(w @ q)
    for _ in range(iterations):
        q = orthonormal(w.T @ q)
        q = orthonormal(w @ q)
    b = q.T @ w  # [width, K]: its SVD from the small Gram matrix
    eigen, u = small_eigh(b @ b.T)
    s = eigen[-rank:].flip(0).clamp_min(0).sqrt().float()
    u = u[:, -rank:].flip(1).float()
    return q @ u, s, (u.T @ b) / s.clamp_min(1e-30)[:, None]


def orthonormal(a: Tensor) -> Tensor:
    """An orthonormal basis [N, r] of the span of the few columns of a [N, r] f32."""
    return cholesky_basis(a) if a.is_cuda else _householder_basis(a)


def _householder_basis(a: Tensor) -> Tensor:
    q: Tensor = torch.linalg.qr(a).Q
    return q


def cholesky_basis(a: Tensor) -> Tensor:
    """`orthonormal` in a handful of launches, where a Householder QR needs several per column.

    a = Q R with R from the Gram matrix in fp64: Q is off by about 2^-53 cond(a)², so below f32's rounding up to a
    condition of 10^4 or so. Beyond that, and for dependent columns, Householder's QR is used.
    """
    wide = a.double()
    factor, failed = torch.linalg.cholesky_ex(wide.T @ wide)
    diagonal = factor.diagonal()
    if bool((failed != 0) | ~(diagonal.min() > 1e-5 * diagonal.max())):  # NaN: not greater
        return _householder_basis(a)
    basis: Tensor = torch.linalg.solve_triangular(factor.T, wide, upper=True, left=False)
    return basis.float()


def small_eigh(m: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues [r], ascending, and vectors [r, r] of a small symmetric matrix, in fp64 on m's device.

    Computed on the CPU: at r = 40 a GPU takes several times as long.
    """
    eigen, vectors = torch.linalg.eigh(m.double().cpu())
    return eigen.to(m.device), vectors.to(m.device)


def balance(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Rescale each rank-one term so that the largest entries of its column and row are equal.

    down has 1/s folded in and may span many powers of two; after this neither factor under- or overflows f16
    unless their product does. Powers of two only: no rounding.
    """
    a, b = up.abs().amax(0), down.abs().amax(1)
    both = (a > 0) & (b > 0)
    shift = torch.where(both, torch.round((torch.log2(a.clamp_min(1e-30)) - torch.log2(b.clamp_min(1e-30))) / 2), 0.0)
    factor = torch.exp2(shift)
    return up / factor, down * factor[:, None]


class Seen(NamedTuple):
    """The inputs of a linear in calibration: rows x [T, K] f32, and absmax [K] f32 over at least these rows."""

    x: Tensor
    absmax: Tensor


def make_room(up: Tensor, down: Tensor, seen: Seen) -> tuple[Tensor, Tensor]:
    """Move powers of two from rows of down [R, K] to columns of up [N, R], so that t = x · downᵀ fits f16.

    The sum over K can make t large where both factors and y are small. Afterwards t may grow to 16 times what the rows
    of `seen` give, and fits for any signs of x within its absmax, as of a token that was not sampled. Where up has no
    range left for that, t stays as it is, and split.Tokens sees what becomes of it.
    """
    largest = torch.maximum(_T_HEADROOM * (seen.x @ down.T).abs().amax(0), down.abs() @ seen.absmax)
    wanted = torch.ceil(torch.log2(largest.clamp_min(1e-30) / F16_MAX))
    left = torch.floor(torch.log2(F16_MAX / up.abs().amax(0).clamp_min(1e-30)))
    factor = torch.exp2(torch.minimum(wanted, left).clamp_min(0))
    return up * factor, down / factor[:, None]
