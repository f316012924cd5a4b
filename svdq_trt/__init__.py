"""svdq-trt: from a diffusion model in PyTorch to a TensorRT engine whose linears run SVDQuant.

Importing this package loads neither torch nor CUDA nor TensorRT; the names below load on first use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from svdq_trt.nn.linear import SVDQLinear
    from svdq_trt.quantize.layer import quantize_linear

__version__ = "1.0.0"
__all__ = ["SVDQLinear", "__version__", "quantize_linear"]


def __getattr__(name: str) -> Any:
    if name == "SVDQLinear":
        from svdq_trt.nn.linear import SVDQLinear

        return SVDQLinear
    if name == "quantize_linear":
        from svdq_trt.quantize.layer import quantize_linear

        return quantize_linear
    raise AttributeError(f"module 'svdq_trt' has no attribute '{name}'")
