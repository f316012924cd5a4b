"""Random linears and feed-forwards in numpy, their fp64 reference, and how near to it a kernel has to be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from svdq_trt.contract.formats import ACT_SHIFT, FORMATS, Activation, Format
from svdq_trt.contract.reference.linear import linear_unrounded, round_output
from svdq_trt.contract.reference.quant import Array, QuantWeight, quantize_weight
from svdq_trt.contract.tolerances import KERNEL_ERROR

NUMPY_DTYPE: dict[str, Any] = {"f16": np.float16, "bf16": ml_dtypes.bfloat16}


@dataclass
class Linear:
    """One linear and its input, on the host. Arrays as in svdq_trt/contract/ops.py; x is [M, K]."""

    fmt: Format
    dtype: str
    activation: Activation
    x: Array
    weight: QuantWeight
    act_mul: Array
    lora_down: Array
    lora_up: Array
    bias: Array
    unsigned: bool = False
    shift: float = 0.0

    def reference(self) -> Array:
        """[M, N_out] in the output dtype."""
        y = linear_unrounded(
            self.x,
            self.weight,
            self.act_mul,
            self.lora_down,
            self.lora_up,
            self.bias,
            self.fmt,
            self.activation,
            self.unsigned,
            self.shift,
        )
        return round_output(y, NUMPY_DTYPE[self.dtype])

    def with_x(self, x: Array) -> Linear:
        """The same linear on another input."""
        return replace(self, x=x)


def split_name(name: str) -> tuple[Format, bool]:
    """``int4u`` is int4 with unsigned activation codes."""
    return (FORMATS["int4"], True) if name == "int4u" else (FORMATS[name], False)


def random_linear(
    name: str,
    dtype: str,
    m: int,
    n: int,
    k: int,
    r: int,
    activation: Activation = Activation.NONE,
    bias: bool = True,
    seed: int = 0,
) -> Linear:
    """Gaussian data with a few outlier channels; y is of order 1, so that activations bend."""
    fmt, unsigned = split_name(name)
    rng = np.random.default_rng([seed, m, n, k, r, fmt.index])
    t = NUMPY_DTYPE[dtype]
    x = rng.standard_normal((m, k))
    x[:, :: max(k // 5, 1)] *= 8
    shift = 0.0
    if unsigned:
        shift = ACT_SHIFT[Activation.GELU]
        x = np.maximum(x, -shift / 2)  # as behind a GELU
    w = quantize_weight(rng.standard_normal((n, k)) / np.sqrt(k), fmt, t)
    return Linear(
        fmt,
        dtype,
        activation,
        x.astype(t),
        w,
        rng.uniform(0.4, 1.6, k).astype(t),
        (rng.standard_normal((r, k)) / np.sqrt(k)).astype(t),
        (rng.standard_normal((n, r)) / np.sqrt(max(r, 1))).astype(t),
        (rng.standard_normal(n) if bias else np.zeros(n)).astype(t),
        unsigned,
        shift,
    )


@dataclass
class Mlp:
    """fc1 with its input x [M, K1] and its activation; fc2, whose x [M, K2] only has the hidden's shape."""

    fc1: Linear
    fc2: Linear

    def with_x(self, x: Array) -> Mlp:
        """The same linears on another input."""
        return replace(self, fc1=self.fc1.with_x(x))

    def without_up(self) -> Mlp:
        """fc2's lora_up is zero: y shows the hidden's codes and scales, and nothing of t."""
        return replace(self, fc2=replace(self.fc2, lora_up=self.fc2.lora_up * 0))


def random_mlp(
    name: str, dtype: str, m: int, k: int, hidden: int, n: int, ranks: tuple[int, int], activation: Activation
) -> Mlp:
    """Random linears K -> hidden -> N; ``int4u`` is int4 with unsigned codes and a shift for the hidden."""
    first = "int4" if name == "int4u" else name
    return Mlp(
        random_linear(first, dtype, m, hidden * activation.rows_per_feature, k, ranks[0], activation),
        random_linear(name, dtype, m, n, hidden, ranks[1], seed=1),
    )


def sqnr_db(reference: Array, got: Array) -> float:
    """Signal to noise in dB; -inf where `got` has a NaN or Inf that the reference has not."""
    ref: NDArray[np.float64] = reference.astype(np.float64)
    err = got.astype(np.float64) - ref
    if not np.isfinite(err).all():
        return -np.inf
    return float(10 * np.log10((ref**2).sum() / max((err**2).sum(), 1e-300)))


def assert_same_bits(got: Array, want: Array) -> None:
    """Of two arrays of 16-bit floats; NaN equals the same NaN."""
    np.testing.assert_array_equal(got.view(np.int16), want.view(np.int16))


def assert_accurate(got: Array, want: Array, dtype: str) -> None:
    """As near to the reference as the kernels of a dtype have to be."""
    db, limit = sqnr_db(want, got), KERNEL_ERROR[dtype]
    assert db >= limit.db, f"{db:.1f} dB, want {limit.db} ({limit.reason}); {worst(want, got)}"


def assert_bad_rows_stay_alone(got: Array, clean: Array, rows: Sequence[int]) -> None:
    """`rows` of x had a NaN or Inf: they are NaN throughout, the others what they are without those."""
    assert np.isnan(got[rows].astype(np.float64)).all(), "a row with NaN or Inf must be NaN throughout"
    others = np.setdiff1d(np.arange(len(got)), rows)
    assert_same_bits(got[others], clean[others])


def worst(reference: Array, got: Array) -> str:
    """Where the largest error is, for a failure's message."""
    err = np.abs(got.astype(np.float64) - reference.astype(np.float64))
    i = np.unravel_index(np.argmax(np.where(np.isnan(err), np.inf, err)), err.shape)
    where = tuple(int(j) for j in i)
    return f"worst at {where}: got {got[i]}, want {reference[i]}; {np.isnan(err).sum()} NaN"
