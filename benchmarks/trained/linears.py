"""Running a model's quantized linears for the pictures: in the project's kernels, or in plain torch."""

from __future__ import annotations

from torch import Tensor, nn

from svdq_trt.base.errors import ArtifactError
from svdq_trt.nn import capi, ops
from svdq_trt.nn.linear import SVDQLinear


def has_kernels(device: str) -> bool:
    """Whether the device is a GPU and the kernel library is built."""
    if device != "cuda":
        return False
    try:
        capi.load_library()
    except ArtifactError:
        return False
    return True


class Unpacked(nn.Module):
    """An SVDQLinear with its weight in f32: computes like the torch op, without unpacking the codes in every call."""

    weight: Tensor

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
