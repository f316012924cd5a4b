"""16-bit floats of examples/cpp against PyTorch's."""

from __future__ import annotations

import torch
from safetensors.torch import load_file, save_file

from tests.cpu.cpp.conftest import run


def test_conversions_are_torchs(driver, tmp_path):
    """Every 16-bit value, the middle between it and the next, and what lies beside that; and any bits."""
    halves = torch.arange(-(2**15), 2**15).to(torch.int16)
    near = []
    for dtype in (torch.float16, torch.bfloat16):
        exact, after = halves.view(dtype).float(), (halves + 1).view(dtype).float()
        middle = ((exact.double() + after.double()) / 2).float()
        near += [exact, *(torch.nextafter(middle, torch.tensor(end)) for end in (-torch.inf, torch.inf)), middle]
    bits = torch.randint(-(2**31), 2**31, (1_000_000,), generator=torch.Generator().manual_seed(0))
    values = torch.cat([*near, bits.to(torch.int32).view(torch.float32)])
    save_file({"values": values}, tmp_path / "in.safetensors")
    done = run(driver, "convert", tmp_path / "in.safetensors", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    got = load_file(tmp_path / "out")
    for name, dtype in (("F16", torch.float16), ("BF16", torch.bfloat16)):
        want = values.to(dtype)
        is_nan = want.isnan()
        assert torch.equal(got[name].isnan(), is_nan)
        assert torch.equal(got[name][~is_nan].view(torch.int16), want[~is_nan].view(torch.int16))
        assert torch.equal(got[f"{name} back"][~is_nan], want[~is_nan].float())
