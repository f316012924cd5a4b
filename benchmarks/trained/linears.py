"""The quantized linears of a model as they are run for the pictures: the project's kernels, or plain torch."""

from __future__ import annotations

from torch import Tensor, nn

from svdq_trt.base.errors import ArtifactError
from svdq_trt.nn import capi, ops
from svdq_trt.nn.linear import SVDQLinear


def has_kernels(device: str) -> bool:
    """On a GPU, with the kernel library built."""
    if device != "cuda":
        return False
    try:
        capi.load_library()
    except ArtifactError:
        return False
    return True


class Unpacked(nn.Module):
    """An SVDQLinear with its weight in f32: what the torch op computes, without unpacking the codes in every call."""

    def __init__(self, layer: SVDQLinear) -> None:
        super().__init__()
        self.layer = layer
        self.register_buffer("weight", layer.weights.unpack())

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., out_features]."""
        return ops.with_weight(x, self.weight, self.layer.weights)


def unpack(module: nn.Module) -> None:
    """Replace every SVDQLinear by an Unpacked."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, SVDQLinear):
                setattr(parent, name, Unpacked(child))
