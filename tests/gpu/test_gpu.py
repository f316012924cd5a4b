"""What the CUDA driver says of a GPU is what torch says, and making it current disturbs no other library."""

from __future__ import annotations

import pytest
import torch

from svdq_trt.base.errors import UnsupportedError
from svdq_trt.engine import gpu

GIB = 1 << 30


def test_gpu_is_torchs():
    major, minor = torch.cuda.get_device_capability(0)
    assert (gpu.gpu_name(0), gpu.local_arch(0)) == (torch.cuda.get_device_name(0), 10 * major + minor)


def test_memory_in_use_follows_torchs():
    torch.cuda.empty_cache()
    before = gpu.used_bytes(0)
    held = torch.empty(GIB, dtype=torch.uint8, device="cuda:0")
    assert gpu.used_bytes(0) - before >= len(held)


def test_torch_computes_inside_and_after():
    x = torch.arange(8.0, device="cuda:0")
    with gpu.on_gpu(0), gpu.on_gpu(0):
        inside = x + 1
    assert torch.equal(inside, x + 1)
    with pytest.raises(UnsupportedError, match=r"^CUDA device 99: not found"), gpu.on_gpu(99):
        pytest.fail("ran")
