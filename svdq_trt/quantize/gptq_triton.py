"""GPTQ's column loop over one block as one kernel: on a GPU, launches per column and operation would be the cost.

    for i = B-1 .. 0:   v_i = round(want_i / step_i),   e_i = todo_i - v_i step_i,   want_c += F[c, i] e_i for c < i

Every row n is independent. A program takes ROWS rows of all B columns and keeps `want` in registers:

    operand       shape        kept in
    want          [B, ROWS]    registers, updated after every column
    todo, step    [B, ROWS]    memory, one row [ROWS] per column
    F             [B, B]       L1, one column [B] per column

The sums run in another order than in gptq's own loop, so codes near a tie may differ from it; they repeat.
"""

from __future__ import annotations

from threading import Lock

import torch
import triton
import triton.language as tl
from torch import Tensor

from svdq_trt.contract.formats import NVFP4, Format

_ROWS = 32  # per program: 128 x 32 values in 128 threads are 32 registers each
_compiling = Lock()  # Triton's cache of compiled kernels is not thread-safe


def round_block(
    todo: Tensor, wanted: Tensor, feedback: Tensor, steps: Tensor, fmt: Format, values: Tensor, wrong: Tensor
) -> None:
    """gptq._round_block on a GPU. All arguments but `feedback` are [B, N] f32, contiguous; B is a power of two."""
    block, n = todo.shape
    assert all(t.is_contiguous() for t in (todo, wanted, steps, values, wrong))
    columns = feedback[:, :block].T.contiguous()  # column i of F is read with stride 1
    with _compiling, torch.cuda.device(todo.device):
        _kernel[(-(-n // _ROWS),)](
            todo, wanted, columns, steps, values, wrong, n, FP4=fmt is NVFP4, BLOCK=block, ROWS=_ROWS
        )


@triton.jit  # type: ignore[untyped-decorator, unused-ignore]
def _kernel(  # type: ignore[no-untyped-def]
    todo,
    wanted,
    columns,
    steps,
    values,
    wrong,
    n,
    FP4: tl.constexpr,
    BLOCK: tl.constexpr,
    ROWS: tl.constexpr,
):
    rows = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, BLOCK)
    inside = rows < n
    want = tl.load(wanted + column[:, None] * n + rows[None, :], mask=inside[None, :], other=0.0)
    for back in range(BLOCK):
        i = BLOCK - 1 - back
        here = i * n + rows
        target = tl.sum(tl.where(column[:, None] == i, want, 0.0), axis=0)
        step = tl.load(steps + here, mask=inside, other=1.0)
        if FP4:  # numerics.round_e2m1: neighbours are half the power of two at or below max(|v|, 1) apart
            v = tl.where(step > 0, target * tl.div_rn(1.0, tl.where(step > 0, step, 1.0)), 0.0)
            v = tl.minimum(tl.maximum(v, -6.0), 6.0)
            bits = tl.maximum(tl.abs(v), 1.0).to(tl.int32, bitcast=True) & 0x7F800000
            unit = bits.to(tl.float32, bitcast=True) * 0.5
            value = (v / unit + 12582912.0 - 12582912.0) * unit  # 1.5 · 2^23: to an integer, ties to even
        else:
            v = tl.minimum(tl.maximum(tl.div_rn(target, step), -7.0), 7.0)
            value = v + 12582912.0 - 12582912.0
        error = tl.load(todo + here, mask=inside, other=0.0) - value * step
        tl.store(values + here, value, mask=inside)
        tl.store(wrong + here, error, mask=inside)
        share = tl.load(columns + i * BLOCK + column)
        want += tl.where(column < i, share, 0.0)[:, None] * error[None, :]
