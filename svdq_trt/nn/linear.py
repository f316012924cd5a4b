"""``SVDQLinear``: a linear whose weight is a 4-bit residual plus a 16-bit low-rank branch."""

from __future__ import annotations

from torch import Tensor, nn

from svdq_trt.contract.ops import CONSTANTS
from svdq_trt.contract.weights import SvdqWeights
from svdq_trt.nn import ops


class SVDQLinear(nn.Module):
    """SvdqWeights as a module: the tensors are its buffers, so the state dict is the artifact.

    Attributes:
        format, activation, act_unsigned, act_shift: as of SvdqWeights.
    """

    def __init__(self, weights: SvdqWeights) -> None:
        super().__init__()
        self.format, self.activation = weights.format, weights.activation
        self.act_unsigned, self.act_shift = weights.act_unsigned, weights.act_shift
        for name, tensor in weights.tensors.items():
            self.register_buffer(name, tensor)

    @property
    def weights(self) -> SvdqWeights:
        """The buffers as they are now."""
        return SvdqWeights(
            **{spec.name: getattr(self, spec.name) for spec in CONSTANTS},
            format=self.format,
            activation=self.activation,
            act_unsigned=self.act_unsigned,
            act_shift=self.act_shift,
        )

    @property
    def in_features(self) -> int:
        """K."""
        return self.weights.k

    @property
    def out_features(self) -> int:
        """Features of y: N, or N/2 with a gated activation."""
        return self.activation.n_out(self.weights.n)

    @property
    def rank(self) -> int:
        """R."""
        return self.weights.rank

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., out_features], in x's dtype."""
        return ops.apply(x, self.weights)

    def dequantize(self) -> Tensor:
        """[N, K] f32: the weight that this layer multiplies raw x with; low-rank + residual, smoothing undone."""
        return self.weights.dequantize()

    def extra_repr(self) -> str:
        """Shapes and format for ``print(module)``."""
        act = f", {self.activation.value}" if self.activation.value else ""
        return f"{self.in_features}, {self.out_features}, {self.format.name}, rank={self.rank}{act}"
