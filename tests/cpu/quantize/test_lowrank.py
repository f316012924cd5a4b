"""The low-rank branch against torch's SVD."""

from __future__ import annotations

import pytest
import torch

from svdq_trt.quantize.lowrank import balance, cholesky_basis, top_singular


def weight(n: int, k: int) -> torch.Tensor:
    g = torch.Generator().manual_seed(n + k)
    w = torch.randn(n, k, generator=g)
    w[:, :3] *= 30
    return w


@pytest.mark.parametrize("shape", [(96, 160), (160, 96), (64, 64)])
def test_exact_factors_reach_the_best_rank_r_error(shape):
    w = weight(*shape)
    u, v = top_singular(w, 16, power_iterations=0)
    best = torch.linalg.svdvals(w.double())[16:].square().sum().sqrt()
    assert (w - u @ v).norm() == pytest.approx(best.item(), rel=1e-4)


@pytest.mark.parametrize("iterations", [1, 4])
def test_subspace_factors_are_close_to_the_best_and_repeat(iterations):
    w = weight(200, 128)
    u, v = top_singular(w, 16, iterations)
    best = torch.linalg.svdvals(w)[16:].square().sum().sqrt()
    assert best * 0.999 <= (w - u @ v).norm() <= best * (1.1 if iterations == 1 else 1.03)
    again = top_singular(w, 16, iterations)
    assert torch.equal(u, again[0]) and torch.equal(v, again[1])


def test_rank_above_the_matrix_is_clamped():
    u, v = top_singular(weight(8, 64), 32, 0)
    assert u.shape == (8, 8) and v.shape == (8, 64)


def test_balance_equalizes_without_rounding():
    g = torch.Generator().manual_seed(0)
    up, down = torch.randn(32, 4, generator=g) * 1e3, torch.randn(4, 64, generator=g) * 1e-6
    up[:, 2] = 0
    a, b = balance(up, down)
    assert torch.equal(a[:, :, None] * b[None], up[:, :, None] * down[None])
    live = [0, 1, 3]
    ratio = a.abs().amax(0)[live] / b.abs().amax(1)[live]
    assert ((ratio > 0.49) & (ratio < 2.1)).all()


def test_cholesky_basis_spans_what_householders_does():
    a = weight(300, 24)
    q, h = cholesky_basis(a), torch.linalg.qr(a).Q
    torch.testing.assert_close(q.T @ q, torch.eye(24), rtol=0, atol=1e-5)
    torch.testing.assert_close(q @ (q.T @ h), h, rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["dependent", "zero", "far apart"])
def test_cholesky_basis_of_bad_columns_is_orthonormal_all_the_same(kind):
    a = weight(300, 24)
    a = {"dependent": a[:, [0, *range(23)]], "zero": a * 0, "far apart": a * 10.0 ** -torch.arange(24)}[kind]
    q = cholesky_basis(a)
    torch.testing.assert_close(q.T @ q, torch.eye(24), rtol=0, atol=1e-5)
