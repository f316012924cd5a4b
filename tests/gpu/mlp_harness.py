"""Two linears with an activation between them, and their reference."""

from __future__ import annotations

from dataclasses import dataclass, replace

from svdq_harness import Linear, random_linear

from svdq_trt.ref.quant import Array
from svdq_trt.spec.formats import Activation


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
    outputs = 2 * hidden if activation is Activation.GEGLU else hidden
    return Mlp(
        random_linear(first, dtype, m, outputs, k, ranks[0], activation),
        random_linear(name, dtype, m, n, hidden, ranks[1], seed=1),
    )
