"""The quantized linears of a model as they are run for the pictures: the project's kernels, or plain torch."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from svdq_trt import numerics
from svdq_trt.errors import ArtifactError
from svdq_trt.nn import capi
from svdq_trt.nn.linear import SVDQLinear
from svdq_trt.nn.ops import activate


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
        packed = numerics.QuantWeight(layer.qweight, layer.wscale, layer.wscale2)
        self.register_buffer("weight", numerics.dequantize_weight(packed, layer.format))

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., out_features]."""
        layer = self.layer
        rows = x.flatten(0, -2)
        x_hat = numerics.smooth(rows, layer.act_mul, layer.act_shift)
        codes = numerics.fake_quantize_act(x_hat, layer.format, layer.act_unsigned)
        y = torch.addmm(layer.bias.float(), codes, self.weight.T)
        if layer.rank:
            low = (rows.float() @ layer.lora_down.float().T).to(x.dtype)
            y = torch.addmm(y, low.float(), layer.lora_up.float().T)
        return activate(y, layer.activation).to(x.dtype).unflatten(0, x.shape[:-1])


def unpack(module: nn.Module) -> None:
    """Put an Unpacked in the place of every SVDQLinear."""
    for parent in list(module.modules()):
        for name, child in parent.named_children():
            if isinstance(child, SVDQLinear):
                setattr(parent, name, Unpacked(child))
