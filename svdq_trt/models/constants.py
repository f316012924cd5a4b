"""Constants of a forward pass that are no parameters: the module has no state of its own for them."""

from __future__ import annotations

import functools

import torch


def constant(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    """The values as f32; on a GPU copied there once, as a CUDA graph's capture allows no copy from the host."""
    if device.type == "cuda":
        return _on_gpu(values, device)
    return torch.tensor(values, dtype=torch.float32, device=device)


@functools.cache
def _on_gpu(values: tuple[float, ...], device: torch.device) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)
