"""A smoothed weight as low-rank factors plus rounded residual, and its error on calibration tokens.

Letters: N output features, K input features, R rank, T tokens. W_s = W / act_mul is the smoothed weight.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from svdq_trt import numerics
from svdq_trt.quantize.lowrank import balance, top_singular
from svdq_trt.spec.formats import Format


@dataclass(frozen=True)
class Split:
    """W_s ~ up @ (down / act_mul) + values * step.

    Attributes:
        values: [N, K] f32 code values (numerics.round_weight).
        scales: of the values, as stored.
        act_mul: [K] f32. down: [R, K] f32, reads raw x; up: [N, R] f32. Both exact in the act dtype; R may be
            below the rank asked for, where min(N, K) is.
    """

    values: Tensor
    scales: numerics.WeightScales
    act_mul: Tensor
    down: Tensor
    up: Tensor

    def rounded(self) -> Tensor:
        """[N, K] f32: the values that the stored codes and scales mean."""
        n, groups = self.scales.step.shape
        return (self.values.view(n, groups, -1) * self.scales.step[..., None]).flatten(1)

    def residual(self, w: Tensor) -> Tensor:
        """[N, K]: W_s less the low-rank part; what the codes have to carry."""
        smoothed = w / self.act_mul
        return smoothed - self.up @ (self.down / self.act_mul) if self.up.shape[1] else smoothed

    def with_factors(self, u: Tensor, v: Tensor, act_dtype: torch.dtype) -> Split:
        """The same codes with u @ v [N, R] [R, K] as low-rank part of W_s, rounded to the act dtype."""
        up, down = balance(u, v * self.act_mul)
        return replace(self, up=up.to(act_dtype).float(), down=down.to(act_dtype).float())

    def with_rounding(self, w: Tensor, fmt: Format, act_dtype: torch.dtype) -> Split:
        """The same factors with the residual's codes rounded to nearest.

        The residual is taken from the *rounded* factors, so the 4-bit part also carries their rounding error.
        """
        residual = self.residual(w)
        scales = numerics.weight_scales(residual, fmt, act_dtype)
        grouped = residual.view(residual.shape[0], -1, fmt.weight_group)
        values = numerics.round_weight(grouped, scales.step[..., None], fmt).flatten(1)
        return replace(self, values=values, scales=scales)


def split_weight(
    w: Tensor, act_mul: Tensor, fmt: Format, rank: int, act_dtype: torch.dtype, power_iterations: int
) -> Split:
    """Smooth W [N, K], take the low-rank part out by SVD, round the rest to nearest."""
    n, k = w.shape
    none = numerics.WeightScales(w.new_zeros(n, 0), w.new_zeros(0), w.new_zeros(0))
    split = Split(w.new_zeros(0), none, act_mul, w.new_zeros(0, k), w.new_zeros(n, 0))
    if rank:
        split = split.with_factors(*top_singular(w / act_mul, rank, power_iterations), act_dtype)
    return split.with_rounding(w, fmt, act_dtype)


class Tokens:
    """Calibration tokens under one smoothing, quantized once, with the outputs wanted.

    Attributes:
        x: [T, K] f32, values of the act dtype.
        smoothed: [T, K] f32, x̂ before quantization. quantized: [T, K] f32, after.
        y: [T, N] f32, full-precision outputs without bias. energy: of y, squared; never 0.
    """

    def __init__(self, x: Tensor, y: Tensor, act_mul: Tensor, fmt: Format, act_dtype: torch.dtype) -> None:
        x16 = x.to(act_dtype)
        hat = numerics.smooth(x16, act_mul)
        self.x, self.smoothed, self.quantized = x16.float(), hat.float(), numerics.fake_quantize_act(hat, fmt)
        self.y, self.energy = y, float(y.square().sum()) or 1.0

    def error(self, split: Split) -> float:
        """Squared error of the quantized linear's output over the energy of the wanted one."""
        y = self.quantized @ split.rounded().T
        if split.down.shape[0]:
            y.addmm_(self.x @ split.down.T, split.up.T)
        return float((y - self.y).square().sum()) / self.energy
