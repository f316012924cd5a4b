"""torch.ops.svdq.linear on CUDA: the kernels through torch, against the same op on the CPU."""

from __future__ import annotations

import pytest
import torch

from svdq_trt.contract.formats import FORMATS, Activation
from svdq_trt.quantize.layer import quantize_linear


@pytest.mark.parametrize("fmt", list(FORMATS))
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
@pytest.mark.parametrize("rank", [0, 32])
@pytest.mark.parametrize("activation", [Activation.GEGLU, Activation.SWIGLU], ids=["geglu", "swiglu"])
def test_module_on_cuda_equals_the_module_on_the_cpu(fmt, dtype, rank, activation):
    torch.manual_seed(0)
    linear = torch.nn.Linear(192, 256).to(dtype)
    calib = torch.randn(64, 192)
    module = quantize_linear(linear, calib, format=fmt, rank=rank, activation=activation)
    x = torch.randn(2, 33, 192).to(dtype)
    want = module(x).double()
    got = module.cuda()(x.cuda()).cpu().double()
    assert got.shape == (2, 33, 128)
    sqnr = 10 * torch.log10(want.square().sum() / (got - want).square().sum())
    assert sqnr > (58 if dtype == torch.float16 else 43)  # both round the output once


def test_x_that_is_a_misaligned_view_is_taken():
    torch.manual_seed(0)
    module = quantize_linear(torch.nn.Linear(64, 64).half(), torch.randn(32, 64), rank=16).cuda()
    flat = torch.randn(8 * 64 + 1, device="cuda").half()
    view = flat[1:].view(8, 64)
    assert view.data_ptr() % 16
    assert torch.equal(module(view), module(view.clone()))


def test_float32_is_refused():
    module = quantize_linear(torch.nn.Linear(64, 64).half(), torch.randn(32, 64), rank=16).cuda()
    with pytest.raises(Exception, match=r"x is torch\.float32, want float16 or bfloat16"):
        module(torch.zeros(4, 64, device="cuda"))
