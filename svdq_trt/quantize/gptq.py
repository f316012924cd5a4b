"""Error feedback in the rounding of the residual (GPTQ), and the low-rank fit that follows it.

Both minimize ||D x||^2 over the tokens, D = W_s - L - Q, by the second moments of the smoothed input,

    H = XᵀX + d I,      ||D x||^2 summed over tokens ~ trace(D H Dᵀ).

Rounding goes column by column. With H = C Cᵀ, C lower triangular, the error of a row e is |e C|^2, and
(e C)_i = C_ii (e_i + sum_{j>i} e_j C_ji / C_ii): from the last column to the first, each column is rounded after
adding what the columns before it in that order got wrong. This is GPTQ (Frantar et al., arXiv 2210.17323) in the
form of LDLQ (Chee et al., arXiv 2307.13304): the same codes, with one Cholesky factorization and no inverse.

d is far above GPTQ's 1 % of the mean diagonal: here T is about K or below, not 100 K, and H then knows many
directions only as zero. Measured on held-out tokens: 1 % loses up to 3 dB against 30 % at T < K.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor

from svdq_trt.base.errors import first_line
from svdq_trt.base.memory import out_of_memory
from svdq_trt.contract import numerics
from svdq_trt.contract.formats import INT4, Format
from svdq_trt.quantize.lowrank import OVERSAMPLE, orthonormal, small_eigh
from svdq_trt.quantize.split import Split, choose_scales

BLOCK = 128  # columns whose feedback is applied one by one; beyond the block it is a single matrix product
_TRIES = 8
_trying = Lock()  # layers are rounded in several threads
_POWER_ITERATIONS = 8  # of the refit; each costs far less than GPTQ does


class Curvature(NamedTuple):
    """H of some tokens, factored: columns in ascending order of H's diagonal, so the last one is rounded first."""

    order: Tensor  # [K] column of each position
    factor: Tensor  # [K, K] C, lower triangular


def damping(x: Tensor, factor: float = 1.0) -> float:
    """Damping d for x̂ [T, K]: 5 % of the mean diagonal of XᵀX at T = 4K, up to 30 % for fewer; times `factor`."""
    t, k = x.shape
    mean = float(x.square().sum()) / k
    return factor * min(0.3, max(0.01, 0.2 * k / t)) * (mean or 1.0)


def curvature(x: Tensor, d: float) -> Curvature:
    """Factor H = XᵀX + d I for x̂ [T, K] f32. d > 0 makes H definite; against rounding errors, d is raised."""
    order = torch.argsort(x.square().sum(0), stable=True)
    x = x[:, order]
    h = x.T @ x
    h.diagonal().add_(d)
    for _ in range(_TRIES):
        factor, failed = torch.linalg.cholesky_ex(h)
        if not failed:
            return Curvature(order, factor)
        h.diagonal().add_(d)
        d *= 2
    return Curvature(order, torch.eye(len(h), device=h.device))  # no feedback: round to nearest


def gptq(
    w: Tensor, split: Split, curve: Curvature, fmt: Format, act_dtype: torch.dtype, h: Tensor | None = None
) -> Split:
    """Round the residual of `split` again, with error feedback and fixed scales.

    Args:
        w: [N, K] f32, not smoothed. h: [K], see split.choose_scales.
    """
    residual = split.residual(w)
    scales = choose_scales(residual, h, fmt, act_dtype)
    order, factor = curve
    k = len(order)
    todo = residual.T[order].contiguous()  # [K, N]: a column of the weight is contiguous
    steps = scales.step.T[order // fmt.weight_group].contiguous()
    wrong, values = torch.empty_like(todo), torch.empty_like(todo)
    rounding = rounding_on(todo.device).block if todo.is_cuda else _round_block
    for end in range(k, 0, -BLOCK):
        start = max(0, end - BLOCK)
        feedback = (factor[start:, start:end] / factor.diagonal()[start:end]).T.contiguous()  # [block, K - start]
        wanted = todo[start:end] + feedback[:, end - start :] @ wrong[end:]
        rounding(todo[start:end], wanted, feedback, steps[start:end], fmt, values[start:end], wrong[start:end])
    back = torch.empty_like(residual)
    back[:, order] = values.T
    return replace(split, values=back, scales=scales)


class Rounding(NamedTuple):
    """The way in which blocks are rounded on a GPU.

    Attributes:
        block: a function like `_round_block`. note: why not the kernel, for people; "" where it is the kernel.
    """

    block: Callable[[Tensor, Tensor, Tensor, Tensor, Format, Tensor, Tensor], None]
    note: str


def rounding_on(device: torch.device) -> Rounding:
    """The kernel of gptq_triton if it runs on that GPU, else the loop; tried once."""
    with _trying:
        return _tried(device)


@cache
def _tried(device: torch.device) -> Rounding:
    try:
        from svdq_trt.quantize.gptq_triton import round_block

        one = torch.ones(BLOCK, BLOCK, device=device)
        round_block(one, one, one, one, INT4, one.clone(), one.clone())
    except Exception as error:  # no Triton, no C compiler, no Python headers, no cache folder: each raises its own type
        if out_of_memory("GPTQ", error) is not None:  # says nothing about the kernel, and codes must not depend on it
            raise
        reason = first_line(error)
        return Rounding(
            _round_block,
            "GPTQ runs as torch operations, which is slower, as its kernel does not run here "
            f"({reason}). Triton needs a C compiler and Python's headers.",
        )
    return Rounding(round_block, "")


def _round_block(
    todo: Tensor, wanted: Tensor, feedback: Tensor, steps: Tensor, fmt: Format, values: Tensor, wrong: Tensor
) -> None:
    """Round the B columns of one block, from the last to the first, into `values`, and their errors into `wrong`.

    Args:
        todo: [B, N] the residual. wanted: [B, N], the same with the feedback of the columns after the block.
        feedback: [B, at least B] F, of each column on those before it. steps: [B, N].
    """
    for i in range(len(todo) - 1, -1, -1):
        target = wanted[i] + feedback[i, i + 1 : len(todo)] @ wrong[i + 1 :]
        values[i] = numerics.round_weight(target, steps[i], fmt)
        wrong[i] = todo[i] - values[i] * steps[i]


def refit(w: Tensor, split: Split, x: Tensor, d: float, act_dtype: torch.dtype) -> Split:
    """Keep the codes and fit the low-rank part to the tokens: argmin trace((D - L) H (D - L)ᵀ).

    D = W_s - Q. With U the R leading eigenvectors of D H Dᵀ, that is L = U Uᵀ D. Found by a subspace iteration
    that never forms H: O((N + T) K R) a step.

    Args:
        w: [N, K] f32, not smoothed. x: [T, K] f32, x̂. d: damping of H.
    """
    rank = split.up.shape[1]
    delta = w / split.act_mul - split.rounded()

    def apply(q: Tensor) -> Tensor:
        p = delta.T @ q
        return delta @ (x.T @ (x @ p) + d * p)

    generator = torch.Generator(device="cpu").manual_seed(0)
    q = torch.randn(len(w), min(rank + OVERSAMPLE, *w.shape), generator=generator).to(w.device)
    for _ in range(_POWER_ITERATIONS):
        q = orthonormal(apply(q))
    small = (q.T @ apply(q)).double()
    u = q @ small_eigh((small + small.T) / 2)[1][:, -rank:].flip(1).float()
    return split.with_factors(u, u.T @ delta, act_dtype)
