"""The effect of quantizing each node alone on the model's output.

The model runs in float32 around the nodes, so that 16-bit rounding does not count once per node. Figures are dB of the
output's power over the power of its change, over all inputs together. Changes of independent causes add up in power:
the sum over the nodes predicts what quantizing all of them does.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from svdq_trt.artifact.sensitivity import Effect
from svdq_trt.base.errors import RangeError
from svdq_trt.calibrate.upcast import exact_convolutions, float32_layers
from svdq_trt.checkpoint.ahead import Read
from svdq_trt.contract.ops import op_type
from svdq_trt.contract.sqnr import decibels
from svdq_trt.models import LinearGroup, ModelSpec
from svdq_trt.nn import ops
from svdq_trt.nn.linear import SVDQLinear


class Probe:
    """A model that can be run with some of its nodes quantized.

    The 16-bit module itself is never changed: nodes are installed in copies that share its parameters.
    """

    def __init__(
        self,
        module: nn.Module,
        spec: ModelSpec,
        groups: Sequence[LinearGroup],
        inputs: Sequence[tuple[Tensor, ...]],
        read: Read | None = None,
    ) -> None:
        """Run the 16-bit model once.

        Args:
            module: in 16 bit on the CPU, or in float32 on any device; or on meta, with parameters from `read`.
            groups: its nodes. inputs: model inputs in float32, on its device.
        """
        self._module, self._spec, self._read, self._inputs = module, spec, read, inputs
        self._groups = {group.node: group for group in groups}
        self._want = self._run(module)
        self._signal = math.fsum(float(y.square().sum()) for y in self._want) or 1.0

    def output_db(self, layers: Mapping[str, SVDQLinear]) -> float:
        """SQNR of the output with `layers` in place of their nodes' members."""
        shared = {id(t): t for t in (*self._module.parameters(), *self._module.buffers())}
        module = copy.deepcopy(self._module, shared)
        for node, layer in layers.items():
            self._spec.install(module, self._groups[node], _Float32Node(layer))
        got = self._run(module)
        noise = math.fsum(float((y - want).square().sum()) for y, want in zip(got, self._want, strict=True))
        if not math.isfinite(noise):
            raise RangeError(
                ", ".join(layers), "NaN or Inf in the model's output", "finite values", "Keep it in 16 bit with --skip."
            )
        return decibels(noise / self._signal)

    @torch.no_grad()
    def _run(self, module: nn.Module) -> list[Tensor]:
        flat = self._spec.wrap(module)
        with exact_convolutions(), _in_float32(module, self._read):
            outputs = [self._spec.run(flat, values) for values in self._inputs]
        return [torch.cat([y.double().flatten() for y in found.values()]) for found in outputs]


def scan(
    probe: Probe, layers: Mapping[str, SVDQLinear], layer_db: Mapping[str, float], done: Mapping[str, float]
) -> Iterator[Effect]:
    """Measure the effect of each of `layers` alone, in order.

    Args:
        layer_db: SQNR of each node's own output. done: output_db of nodes that need not run again.
    """
    for node, layer in layers.items():
        output_db = done[node] if node in done else probe.output_db({node: layer})
        yield Effect(node, op_type(layer.format, layer.activation), layer_db[node], output_db)


@contextmanager
def _in_float32(module: nn.Module, read: Read | None) -> Iterator[None]:
    if all(p.dtype == torch.float32 for p in module.parameters()):
        yield
    else:
        with float32_layers(module, lambda *_: None, read):
            yield


class _Float32Node(SVDQLinear):
    """A node whose input and output are float32, its own arithmetic as in the op, on any device."""

    act_mul: Tensor

    def __init__(self, layer: SVDQLinear) -> None:
        super().__init__(layer.weights)

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., out_features], float32."""
        return ops.reference(x, self.weights, self.act_mul.dtype)
