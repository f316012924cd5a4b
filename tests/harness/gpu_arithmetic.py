"""PyTorch on a CPU with the roundings that it has on a GPU."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch.overrides import TorchFunctionMode


class AsOnGpu(TorchFunctionMode):
    """Products, quotients and sums of a float tensor and a scalar as PyTorch's CUDA kernels round them.

    There a scalar that is not in GPU memory stays in float32, and a quotient is the product with its inverse. On a CPU
    the first of two factors, and a summand, are rounded to the tensor's 16 bits. Square roots of float32 are the
    nearest values, which on some CPUs PyTorch's are not.

    Args:
        scalars_there: scalars that are tensors are in GPU memory, and so are rounded.
    """

    def __init__(self, scalars_there: bool) -> None:
        super().__init__()
        self._scalars_there = scalars_there

    def __torch_function__(self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "").strip("_")
        if name == "pow" and args[1] == 0.5 and args[0].dtype == torch.float32:
            return torch.from_numpy(np.sqrt(args[0].numpy(), out=np.empty(args[0].shape, np.float32)))
        if len(args) == 2 and not kwargs and name in _ROUNDED_ONCE:
            first, second = args
            if name in ("mul", "rmul", "add", "radd") and not _is_tensor(first):
                first, second = second, first
            here = not (self._scalars_there and isinstance(second, torch.Tensor))
            if _is_tensor(first) and not _is_tensor(second) and here:
                scalar = torch.as_tensor(second, dtype=torch.float32)
                return _ROUNDED_ONCE[name](first.float(), scalar).to(first.dtype)
        return func(*args, **(kwargs or {}))


_ROUNDED_ONCE: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    **dict.fromkeys(("mul", "rmul"), lambda x, s: x * s),
    **dict.fromkeys(("add", "radd"), lambda x, s: x + s),
    **dict.fromkeys(("div", "truediv"), lambda x, s: x * (1 / s)),
}


def _is_tensor(value: Any) -> bool:
    """Whether it is a tensor of floats with sizes."""
    return isinstance(value, torch.Tensor) and value.dim() > 0 and value.is_floating_point()
