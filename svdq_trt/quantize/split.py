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
from svdq_trt.quantize.lowrank import Seen, balance, make_room, top_singular
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
        seen: the x that x · downᵀ has to fit the act dtype for.
        coding: coding of the activations that it is for.
    """

    values: Tensor
    scales: numerics.WeightScales
    act_mul: Tensor
    down: Tensor
    up: Tensor
    seen: Seen
    coding: Coding = SIGNED

    def rounded(self) -> Tensor:
        """[N, K] f32: the values that the stored codes and scales mean."""
        n, groups = self.scales.step.shape
        return (self.values.view(n, groups, -1) * self.scales.step[..., None]).flatten(1)

    def residual(self, w: Tensor) -> Tensor:
        """[N, K]: W_s less the low-rank part, which the codes represent."""
        smoothed = w / self.act_mul
        return smoothed - self.up @ (self.down / self.act_mul) if self.up.shape[1] else smoothed

    def node_bias(self, bias: Tensor) -> Tensor:
        """[N] f32: the linear's bias less what the coding's shift adds to every output.

        The low-rank part reads raw x, so the shift reaches the codes alone: shift * sum_k rounded_nk * act_mul_k.
        """
        if not self.coding.shift:
            return bias
        return (bias.double() - self.rounded().double() @ self.act_mul.double() * self.coding.shift).float()

    def with_factors(self, u: Tensor, v: Tensor, act_dtype: torch.dtype) -> Split:
        """The same codes with u @ v, [N, R] and [R, K], as the low-rank part of W_s, rounded to the act dtype."""
        up, down = balance(u, v * self.act_mul)
        if act_dtype == torch.float16:  # bf16 has the range of the f32 that t is summed in
            up, down = make_room(up, down, self.seen)
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
    seen: Seen,
    fmt: Format,
    rank: int,
    act_dtype: torch.dtype,
    power_iterations: int,
    coding: Coding = SIGNED,
) -> Split:
    """Smooth W [N, K], take the low-rank part out by SVD, round the rest to nearest."""
    n, k = w.shape
    none = numerics.WeightScales(w.new_zeros(n, 0), w.new_zeros(0), w.new_zeros(0))
    split = Split(w.new_zeros(0), none, act_mul, w.new_zeros(0, k), w.new_zeros(n, 0), seen, coding)
    if rank:
        split = split.with_factors(*top_singular(w / act_mul, rank, power_iterations), act_dtype)
    return split.with_rounding(w, fmt, act_dtype)


class Tokens:
    """Calibration tokens under one smoothing, quantized once, with the outputs wanted.

    Attributes:
        x: [T, K] act dtype.
        smoothed: [T, K] f32, x̂ before quantization and without shift. quantized: [T, K] f32, after, with the shift.
        y: [T, N] f32, full-precision outputs without bias. energy: sum of y²; never 0.
        bias: [N] f32.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        act_mul: Tensor,
        fmt: Format,
        act_dtype: torch.dtype,
        coding: Coding = SIGNED,
        bias: Tensor | None = None,
    ) -> None:
        self.x = x.to(act_dtype)
        self.smoothed = numerics.smooth(self.x, act_mul).float()
        self.quantized = numerics.fake_quantize_act(
            numerics.smooth(self.x, act_mul, coding.shift), fmt, coding.unsigned
        )
        self.y, self.energy = y, float(y.square().sum()) or 1.0
        self.bias = y.new_zeros(y.shape[1]) if bias is None else bias

    def error(self, split: Split) -> float:
        """Squared error of the quantized linear's output over the energy of the wanted one, bias left out of it.

        The arithmetic is the op's (nn/ops.py) up to its activation, with every rounding to the act dtype, the output's
        too. Infinity where scales, factors or t overflow, though a saturated y may be finite.
        """
        act = self.x.dtype
        y = torch.addmm(split.node_bias(self.bias).to(act).float(), self.quantized, split.rounded().T)
        if split.down.shape[0]:
            y.addmm_(numerics.project_down(self.x, split.down), split.up.T)
        if not y.isfinite().all():
            return math.inf
        y = numerics.saturate(y, act).to(act).float()
        return float((y - self.bias - self.y).square().sum()) / self.energy
