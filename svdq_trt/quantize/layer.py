"""Quantize one group of linears that share an input: smoothing search, SVD, rounding, and the ladder above.

Every trial of the search is the real thing: smoothed weight -> low-rank factors in the act dtype -> rounded
residual; activations quantized; squared error of the linear's output on calibration tokens.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import torch
from torch import Tensor, nn

from svdq_trt.artifact.svdq_file import Node
from svdq_trt.base.errors import RangeError, ShapeError, UsageError
from svdq_trt.contract import numerics
from svdq_trt.contract.formats import FORMATS, K_MULTIPLE, N_MULTIPLE, R_MAX, R_MULTIPLE, Activation, Format
from svdq_trt.contract.ops import max_exact_k
from svdq_trt.contract.sqnr import decibels
from svdq_trt.contract.weights import SvdqWeights
from svdq_trt.nn.linear import SVDQLinear
from svdq_trt.quantize.ladder import Rung, climb
from svdq_trt.quantize.lowrank import Seen
from svdq_trt.quantize.preset import DEFAULT_PRESET, PRESETS, Preset
from svdq_trt.quantize.smooth import act_multiplier, candidates
from svdq_trt.quantize.split import Coding, Tokens, codings, split_weight, spread


@dataclass
class QuantizedLinear:
    """One node's weights and how they came about.

    Attributes:
        name: node name.
        weights: with the activation codes chosen; the bias makes up for their shift.
        sqnr_db: output SQNR against full precision, before the activation: on the calibration tokens, or, where
            rungs were tried, on those held out from them.
        alpha, beta: the chosen smoothing exponents.
        trials: (alpha, beta, relative squared error) of every candidate, with the activation codes chosen.
        rungs: what the preset tried beyond the plain split (ladder.climb); empty where it tries nothing.
    """

    name: str
    weights: SvdqWeights
    sqnr_db: float
    alpha: float
    beta: float
    trials: list[tuple[float, float, float]] = field(default_factory=list)
    rungs: list[Rung] = field(default_factory=list)

    def node(self, members: tuple[str, ...], rows: tuple[int, ...]) -> Node:
        """What the artifact says of it: `members` are the original linears, with `rows` of N each."""
        trials = tuple(
            (round(alpha, 4), round(beta, 4), round(decibels(error), 2))
            for alpha, beta, error in self.trials
            if math.isfinite(error)
        )
        return Node.of(self.name, members, rows, self.weights, self.sqnr_db, self.alpha, self.beta, trials)

    def module(self) -> SVDQLinear:
        """The torch module that runs it."""
        return SVDQLinear(self.weights)


class Trial(NamedTuple):
    """One candidate of the search and its relative squared error."""

    coding: Coding
    alpha: float
    beta: float
    error: float


def quantize_group(
    weights: Sequence[Tensor],
    biases: Sequence[Tensor | None],
    x: Tensor,
    fmt: Format,
    rank: int,
    *,
    act_dtype: torch.dtype = torch.float16,
    name: str = "linear",
    activation: Activation = Activation.NONE,
    x_absmax: Tensor | None = None,
    act_shift: float = 0.0,
    preset: Preset = PRESETS[DEFAULT_PRESET],
) -> QuantizedLinear:
    """Quantize linears [N_i, K] that read the same x as one node with N = sum N_i.

    Args:
        weights, biases: per member, stacked on N in this order; a missing bias is zeros.
        x: calibration tokens [T, K].
        fmt: number format. rank: R, a multiple of 16, or 0; beyond min(N, K) it is zeros.
        x_absmax: [K], over more tokens than x; default: of x.
        act_shift: makes every x non-negative (formats.ACT_SHIFT); int4 then tries unsigned codes, too. 0: signed ones.
        preset: how hard to search.

    Raises:
        ShapeError: sizes that the format cannot take, named by layer.
        RangeError: NaN or Inf in a weight, a bias or x.
    """
    w = torch.cat([t.detach().float() for t in weights])
    _check(name, w, x, fmt, rank)
    bias = torch.cat(
        [
            torch.zeros(t.shape[0]) if b is None else b.detach().float().cpu()
            for t, b in zip(weights, biases, strict=True)
        ]
    ).to(w.device)
    if not bias.isfinite().all():
        raise RangeError(name, "NaN or Inf in the bias", "finite values", "Check the checkpoint.")
    x = x.detach().float().to(w.device)
    x_absmax = x.abs().amax(0) if x_absmax is None else x_absmax.float().to(w.device)
    w_absmax = w.abs().amax(0)

    seen = Seen(x, x_absmax)
    rows, tokens = spread(w, preset.rows), spread(x, preset.tokens)
    rows_bias = spread(bias, preset.rows)
    y_ref = tokens @ rows.T

    def smoothing(coding: Coding, alpha: float, beta: float) -> Tensor:
        return act_multiplier(x_absmax + coding.shift, w_absmax, alpha, beta, fmt, act_dtype)

    trials: list[Trial] = []
    for coding, (alpha, beta) in itertools.product(codings(fmt, act_shift), candidates(preset.grids)):
        mul = smoothing(coding, alpha, beta)
        split = split_weight(rows, mul, seen, fmt, rank, act_dtype, preset.search_power_iterations, coding)
        error = Tokens(tokens, y_ref, mul, fmt, act_dtype, coding, rows_bias).error(split)
        trials.append(Trial(coding, alpha, beta, error))
    order = sorted(reversed(trials), key=lambda t: t.error)  # a tie goes to the later candidate

    y_ref = x @ w.T
    ends = []
    for trial in order[: preset.finalists]:
        mul = smoothing(trial.coding, trial.alpha, trial.beta)
        split = split_weight(w, mul, seen, fmt, rank, act_dtype, preset.power_iterations, trial.coding)
        split, rungs = climb(w, split, x, y_ref, bias, fmt, act_dtype, preset)
        ends.append((max((r.sqnr_db for r in rungs if r.kept), default=0.0), trial, split, rungs))
    sqnr, best, split, rungs = max(ends, key=lambda end: end[0])
    coding = split.coding
    if not rungs and y_ref.any():  # a layer of zeros: 0 dB, not minus infinity
        sqnr = decibels(Tokens(x, y_ref, split.act_mul, fmt, act_dtype, coding, bias).error(split))
    qw = numerics.pack_weight(split.values, split.scales, fmt)
    made = SvdqWeights(
        qweight=qw.qweight,
        wscale=qw.wscale,
        act_mul=split.act_mul.to(act_dtype),
        lora_down=split.down.to(act_dtype),
        lora_up=split.up.to(act_dtype),
        bias=split.node_bias(bias).to(act_dtype),
        wscale2=qw.wscale2,
        format=fmt,
        activation=activation,
        act_unsigned=coding.unsigned,
        act_shift=coding.shift,
    ).with_rank(rank)  # above min(N, K) the rest is zero
    for key in ("lora_down", "lora_up", "bias", "wscale"):
        tensor = made.tensors[key]
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise RangeError(name, f"{key} overflows {act_dtype}", "finite values", "Keep this layer in 16 bit.")
    if math.isinf(sqnr):
        what = f"{act_dtype} overflows inside the quantized linear on calibration inputs"
        raise RangeError(name, what, "finite values", "Keep this layer in 16 bit.")
    tried = [(t.alpha, t.beta, t.error) for t in trials if t.coding == coding]
    return QuantizedLinear(name, made.contiguous(), sqnr, best.alpha, best.beta, tried, rungs)


def quantize_linear(
    linear: nn.Linear,
    x_calib: Tensor,
    format: str = "int4",
    rank: int = 32,
    activation: Activation = Activation.NONE,
    dtype: torch.dtype | None = None,
) -> SVDQLinear:
    """Quantize one linear on sample inputs [M, K]: smoothing search, SVD, rounding.

    `dtype` is the 16-bit act dtype; default: the linear's own when it is f16 or bf16, else f16.

    Raises:
        UsageError: an unknown format.
        ShapeError: K % 64 != 0, N % 8 != 0, or x_calib is not [M, K].
        RangeError: NaN or Inf in the weight or in x_calib.
    """
    if format not in FORMATS:
        raise UsageError("format", f"'{format}'", f"one of {', '.join(FORMATS)}")
    return quantize_group(
        [linear.weight],
        [linear.bias],
        x_calib,
        FORMATS[format],
        rank,
        act_dtype=dtype or (linear.weight.dtype if linear.weight.dtype.itemsize == 2 else torch.float16),
        name="linear",
        activation=activation,
    ).module()


def _check(name: str, w: Tensor, x: Tensor, fmt: Format, rank: int) -> None:
    n, k = w.shape
    if k % K_MULTIPLE or k > max_exact_k(fmt):
        raise ShapeError(
            name,
            f"K = {k}",
            f"a multiple of {K_MULTIPLE} up to {max_exact_k(fmt)} for {fmt.name}",
            "Keep this layer in 16 bit.",
        )
    if n % N_MULTIPLE:
        raise ShapeError(name, f"N = {n}", f"a multiple of {N_MULTIPLE}", "Keep this layer in 16 bit.")
    if rank % R_MULTIPLE or not 0 <= rank <= R_MAX:
        raise ShapeError(name, f"rank {rank}", f"a multiple of {R_MULTIPLE} from 0 to {R_MAX}")
    if x.ndim != 2 or x.shape[1] != k or not x.shape[0]:
        raise ShapeError(name, f"calibration input {tuple(x.shape)}", f"[M, {k}] with M >= 1")
    if not w.isfinite().all():
        raise RangeError(name, "NaN or Inf in the weight", "finite values", "Check the checkpoint.")
    if not x.isfinite().all():
        raise RangeError(name, "NaN or Inf in the calibration input", "finite values", "Check the inputs.")
