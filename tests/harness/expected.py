"""The accuracy that a quantized twin must have: what its own layers' errors do to its output.

How far a model carries an error is its own: one with gains of 0.5 on every branch forgives what another does not. So
the limit is no number of dB but what the 16-bit model loses with noise of each node's own size behind each node. A lost
branch is an error as large as the branch, where a node's own is a tenth of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from svdq_trt.artifact.svdq_file import Node
from svdq_trt.contract.sqnr import decibels
from svdq_trt.models import ModelSpec

#: How far below the expected SQNR a right model may be: errors of nodes were measured on other tokens, and are not
#: white. The twins are 3.0 dB above to 3.0 dB below.
MARGIN_DB = 4.0


def expected_sqnr(spec: ModelSpec, module: nn.Module, nodes: Sequence[Node], inputs: Sequence[Tensor]) -> float:
    """Output SQNR in dB of `module`, the 16-bit model in f32, with white noise of each node's relative error.

    Of several outputs it is the lowest.

    Args:
        nodes: those of its artifact. inputs: as spec.example_inputs gives them, in f32.
    """
    flat = spec.wrap(module)
    with torch.inference_mode():
        want = spec.run(flat, inputs)
        hooks = [
            module.get_submodule(member).register_forward_hook(_noise(node, member))
            for node in nodes
            for member in node.members
        ]
        got = spec.run(flat, inputs)
    for hook in hooks:
        hook.remove()
    return min(
        decibels(float((got[n] - y).double().square().sum() / y.double().square().sum())) for n, y in want.items()
    )


def _noise(node: Node, member: str) -> Any:
    """A hook that adds white noise of the node's relative error to the output y of a member."""
    rng = torch.Generator().manual_seed(sum(map(ord, node.name + member)))
    share = 10 ** (-node.sqnr_db / 20)

    def hook(_: nn.Module, __: Any, y: Tensor) -> Tensor:
        return y + torch.randn(y.shape, generator=rng) * y.square().mean().sqrt() * share

    return hook
