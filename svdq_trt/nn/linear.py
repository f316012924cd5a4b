"""``SVDQLinear``: a linear whose weight is a 4-bit residual plus a 16-bit low-rank branch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from svdq_trt.contract import numerics
from svdq_trt.contract.formats import Activation, Format
from svdq_trt.nn import ops  # noqa: F401  (registers torch.ops.svdq.linear)

if TYPE_CHECKING:
    pass

TENSORS = ("qweight", "wscale", "act_mul", "lora_down", "lora_up", "bias", "wscale2")


class SVDQLinear(nn.Module):
    """y = act( Q(x·act_mul)·Q(W)ᵀ + (x·lora_downᵀ)·lora_upᵀ + bias ).

    All tensors are buffers in the op contract's layout (svdq_trt/contract/ops.py), so the state dict is the artifact.

    Attributes:
        format: number format; fixes dtypes and group sizes.
        activation: applied inside the op; Geglu halves the output features.
        act_unsigned, act_shift: u4 activation codes after a shift (int4 behind GELU).
    """

    qweight: Tensor
    wscale: Tensor
    act_mul: Tensor
    lora_down: Tensor
    lora_up: Tensor
    bias: Tensor
    wscale2: Tensor

    def __init__(
        self,
        tensors: dict[str, Tensor],
        format: Format,
        activation: Activation = Activation.NONE,
        act_unsigned: bool = False,
        act_shift: float = 0.0,
    ) -> None:
        super().__init__()
        self.format, self.activation = format, activation
        self.act_unsigned, self.act_shift = act_unsigned, act_shift
        for name in TENSORS:
            self.register_buffer(name, tensors[name])

    @property
    def in_features(self) -> int:
        """K."""
        return 2 * self.qweight.shape[1]

    @property
    def out_features(self) -> int:
        """Features of y: N, or N/2 with Geglu."""
        return self.activation.n_out(self.qweight.shape[0])

    @property
    def rank(self) -> int:
        """R."""
        return self.lora_down.shape[0]

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., out_features], in x's dtype."""
        y: Tensor = torch.ops.svdq.linear(
            x,
            self.qweight,
            self.wscale,
            self.act_mul,
            self.lora_down,
            self.lora_up,
            self.bias,
            self.wscale2,
            self.format.name,
            self.activation.value,
            int(self.act_unsigned),
            self.act_shift,
        )
        return y

    def dequantize(self) -> Tensor:
        """[N, K] f32: the weight that this layer multiplies raw x with; low-rank + residual, smoothing undone."""
        qw = numerics.QuantWeight(self.qweight, self.wscale, self.wscale2)
        residual = numerics.dequantize_weight(qw, self.format) * self.act_mul.float()
        return residual + self.lora_up.float() @ self.lora_down.float()

    def extra_repr(self) -> str:
        """Shapes and format for ``print(module)``."""
        act = f", {self.activation.value}" if self.activation.value else ""
        return f"{self.in_features}, {self.out_features}, {self.format.name}, rank={self.rank}{act}"
