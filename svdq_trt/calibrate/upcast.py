"""Running a 16-bit module in float32, on the CPU or a GPU, without a second copy of its weights.

Each layer's parameters are converted for the duration of its own call, into buffers that are reused. For a GPU
they are moved there for that call: the module itself stays where it is, and at most one layer is on the GPU.

Why float32: on two cores with AVX512-BF16 a linear ran at 152 GFLOP/s in f32, 397 in bf16, 40 in f16.
So bf16 is faster, but on such CPUs only, and its 8 bits of precision would show in the kept rows.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import nn

from svdq_trt.checkpoint.ahead import Read
from svdq_trt.contract.numerics import CPU

#: (layer's dotted name, its first positional input, its output)
Watch = Callable[[str, torch.Tensor, torch.Tensor], None]


class _Scratch:
    """One growing f32 buffer per parameter name ("weight", "bias"): one layer runs at a time."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._buffers: dict[str, torch.Tensor] = {}

    def cast(self, name: str, value: torch.Tensor) -> torch.Tensor:
        n = value.numel()
        if name not in self._buffers or self._buffers[name].numel() < n:
            self._buffers[name] = torch.empty(n, device=self.device)
        out = self._buffers[name][:n].view(value.shape)
        return out.copy_(value.to(self.device))  # moved in 16 bit: copy_ alone would convert on the CPU


def exact_convolutions() -> contextlib.AbstractContextManager[None]:
    """Context in which a GPU convolves in f32, not TF32, by algorithms that give the same bits every time."""
    return torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False)


@contextlib.contextmanager
def float32_layers(
    module: nn.Module, watch: Watch, read: Read | None = None, device: torch.device = CPU
) -> Iterator[None]:
    """Context in which every module that owns parameters computes in f32; `watch` sees each call of a layer.

    A parameter on meta comes from `read`, by its name, for the duration of its own module's call: a model of any
    size runs in the memory of its activations and its largest layer. Inputs and outputs are on `device`.

    Afterwards the module is as before, even after an exception: parameters are put back at the end of each call,
    forwards at the end of the block.
    """
    scratch = _Scratch(device)
    patched: list[tuple[nn.Module, Any]] = []
    try:
        for name, layer in module.named_modules():
            if any(p is not None for p in layer._parameters.values()):
                patched.append((layer, vars(layer).get("forward")))
                layer.forward = _wrapped(name, layer, scratch, watch, read)
        yield
    finally:
        for layer, own in patched:
            del layer.forward  # the instance attribute; the class's method shows again
            if own is not None:  # one that a family gave it
                layer.forward = own


def _wrapped(
    name: str, layer: nn.Module, scratch: _Scratch, watch: Watch, read: Read | None
) -> Callable[..., torch.Tensor]:
    forward = layer.forward
    leaf = not list(layer.children())  # others own tables and run while their children use the scratch buffers

    def value_of(key: str, value: torch.Tensor) -> torch.Tensor:
        if value.is_meta:
            assert read is not None
            value = read(f"{name}.{key}" if name else key)
        return scratch.cast(key, value) if leaf else value.to(scratch.device).float()

    def call(*args: Any, **kwargs: Any) -> torch.Tensor:
        own = dict(layer._parameters)
        try:
            for key, value in own.items():
                if value is not None:
                    layer._parameters[key] = value_of(key, value)  # type: ignore[assignment]
            y: torch.Tensor = forward(*args, **kwargs)
        finally:
            layer._parameters.update(own)
        if leaf:
            watch(name, args[0], y)
        return y

    return call
