"""What stands for a node in tests of models: the same linear in f32."""

from __future__ import annotations

from torch import Tensor, nn

from svdq_trt.contract.formats import Activation
from svdq_trt.nn import ops


class DenseNode(nn.Module):
    """A plain linear instead of an svdq node, with the op's activation."""

    def __init__(self, weight: Tensor, bias: Tensor | None, activation: Activation) -> None:
        super().__init__()
        self.linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        self.linear.weight = nn.Parameter(weight.clone())
        if bias is not None:
            self.linear.bias = nn.Parameter(bias.clone())
        self.activation = activation

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        return ops.activate(self.linear(x), self.activation)
