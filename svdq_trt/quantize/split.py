"""A smoothed weight as low-rank factors plus rounded residual, and its error on calibration tokens.

Letters: N output features, K input features, R rank, T tokens. W_s = W / act_mul is the smoothed weight.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from svdq_trt.contract import numerics
from svdq_trt.contract.formats import Format
from svdq_trt.quantize.lowrank import balance, top_singular
from svdq_trt.quantize.scales import search_scales


@dataclass(frozen=True)
class Coding:
    """The coding of activations: signed, or unsigned after a shift that makes them non-negative."""

    unsigned: bool = False
    shift: float = 0.0


SIGNED = Coding()


def codings(fmt: Format, act_shift: float) -> tuple[Coding, ...]:
    """All codings that are worth a try for x that `act_shift` makes non-negative; 0: no shift does."""
    return (SIGNED, Coding(True, act_shift)) if act_shift and fmt.unsigned_codes else (SIGNED,)


def spread(t: Tensor, most: int) -> Tensor:
    """At most `most` rows of t, evenly spaced (tokens come sorted by denoising step); 0 = all."""
    return t if not most or most >= len(t) else t[:: -(-len(t) // most)].contiguous()


@dataclass(frozen=True)
class Split:
    """W_s ~ up @ (down / act_mul) + values * step.

    Attributes:
        values: [N, K] f32 code values (numerics.round_weight).
        scales: scales of the values, as stored.
        act_mul: [K] f32. down: [R, K] f32, reads raw x; up: [N, R] f32. Both exact in the act dtype; R is at
            most min(N, K), which may be below the rank asked for.
        coding: coding of the activations that it is for.
    """

    values: Tensor
    scales: numerics.WeightScales
    act_mul: Tensor
    down: Tensor
    up: Tensor
    coding: Coding = SIGNED

    def rounded(self) -> Tensor:
        """[N, K] f32: the values that the stored codes and scales mean."""
        n, groups = self.scales.step.shape
        return (self.values.view(n, groups, -1) * self.scales.step[..., None]).flatten(1)

    def residual(self, w: Tensor) -> Tensor:
        """[N, K]: W_s less the low-rank part, which the codes represent."""
        smoothed = w / self.act_mul
        return smoothed - self.up @ (self.down / self.act_mul) if self.up.shape[1] else smoothed

    def shift_offset(self) -> Tensor:
        """[N] f64: the contribution of the coding's shift to every output, to be subtracted from the bias.

        The low-rank part reads raw x, so the shift reaches the codes alone: shift * sum_k rounded_nk * act_mul_k.
        """
        return self.rounded().double() @ self.act_mul.double() * self.coding.shift

    def with_factors(self, u: Tensor, v: Tensor, act_dtype: torch.dtype) -> Split:
        """The same codes with u @ v, [N, R] and [R, K], as the low-rank part of W_s, rounded to the act dtype."""
        up, down = balance(u, v * self.act_mul)
        return replace(self, up=up.to(act_dtype).float(), down=down.to(act_dtype).float())

    def with_rounding(self, w: Tensor, fmt: Format, act_dtype: torch.dtype, h: Tensor | None = None) -> Split:
        """The same factors with the residual's codes rounded to nearest.

        The residual is taken from the *rounded* factors, so the 4-bit part also carries their rounding error.

        Args:
            w: [N, K] f32, not smoothed. h: [K], see choose_scales.
        """
        residual = self.residual(w)
        scales = choose_scales(residual, h, fmt, act_dtype)
        groups = numerics.grouped(residual, fmt.weight_group)
        values = numerics.round_weight(groups, scales.step[..., None], fmt).flatten(1)
        return replace(self, values=values, scales=scales)


def choose_scales(residual: Tensor, h: Tensor | None, fmt: Format, act_dtype: torch.dtype) -> numerics.WeightScales:
    """Choose scales of the residual [N, K]: by search with the importance h [K] of its columns, else by absmax."""
    if h is None:
        return numerics.weight_scales(residual, fmt, act_dtype)
    return search_scales(residual, h, fmt, act_dtype)


def split_weight(
    w: Tensor,
    act_mul: Tensor,
    fmt: Format,
    rank: int,
    act_dtype: torch.dtype,
    power_iterations: int,
    coding: Coding = SIGNED,
) -> Split:
    """Smooth W [N, K], take the low-rank part out by SVD, round the rest to nearest."""
    n, k = w.shape
    none = numerics.WeightScales(w.new_zeros(n, 0), w.new_zeros(0), w.new_zeros(0))
    split = Split(w.new_zeros(0), none, act_mul, w.new_zeros(0, k), w.new_zeros(n, 0), coding)
    if rank:
        split = split.with_factors(*top_singular(w / act_mul, rank, power_iterations), act_dtype)
    return split.with_rounding(w, fmt, act_dtype)


def quantized_act(x: Tensor, act_mul: Tensor, fmt: Format, coding: Coding) -> Tensor:
    """[T, K] f32: the values that the codes of x̂ mean, less the shift; x [T, K] is in the act dtype."""
    codes = numerics.fake_quantize_act(numerics.smooth(x, act_mul, coding.shift), fmt, coding.unsigned)
    return codes - coding.shift * act_mul.float() if coding.shift else codes


class Tokens:
    """Calibration tokens under one smoothing, quantized once, with the outputs wanted.

    Attributes:
        x: [T, K] f32, values of the act dtype.
        smoothed: [T, K] f32, x̂ before quantization and without shift. quantized: [T, K] f32, after, less the shift,
            which in the node the bias subtracts, up to a rounding as small as the output's own.
        y: [T, N] f32, full-precision outputs without bias. energy: sum of y²; never 0.
    """

    def __init__(
        self, x: Tensor, y: Tensor, act_mul: Tensor, fmt: Format, act_dtype: torch.dtype, coding: Coding = SIGNED
    ) -> None:
        x16 = x.to(act_dtype)
        self.x, self.smoothed = x16.float(), numerics.smooth(x16, act_mul).float()
        self.quantized = quantized_act(x16, act_mul, fmt, coding)
        self.y, self.energy = y, float(y.square().sum()) or 1.0

    def error(self, split: Split) -> float:
        """Squared error of the quantized linear's output over the energy of the wanted one.

        Infinity where scales or factors overflow: NaN would be neither better nor worse than any other error.
        """
        y = self.quantized @ split.rounded().T
        if split.down.shape[0]:
            y.addmm_(self.x @ split.down.T, split.up.T)
        error = float((y - self.y).square().sum()) / self.energy
        return math.inf if math.isnan(error) else error
