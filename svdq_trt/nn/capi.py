"""The kernels' C API (plugins/include/svdq/svdq.h) on torch CUDA tensors, by ctypes.

No build against torch: the library knows neither torch nor Python, so any torch release works with it.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import Any

import torch
from torch import Tensor

from svdq_trt.base.errors import ArtifactError, UnsupportedError
from svdq_trt.base.libraries import BUILD_HINT, KERNELS, KERNELS_ENV, locate
from svdq_trt.contract.formats import Activation
from svdq_trt.contract.ops import INPUTS
from svdq_trt.contract.weights import SvdqWeights

#: order of the C enums
ACTIVATIONS = tuple(Activation)
DTYPES = {torch.float16: 0, torch.bfloat16: 1}


class Params(ctypes.Structure):
    """``svdq_linear_params`` of svdq.h, field by field."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("format", "activation", "dtype", "act_unsigned")),
        ("act_shift", ctypes.c_float),
        *((name, ctypes.c_int32) for name in "mnkr"),
        *((name, ctypes.c_void_p) for name in (*(spec.name for spec in INPUTS), "y", "workspace")),
        ("workspace_bytes", ctypes.c_size_t),
    )


class MlpParams(ctypes.Structure):
    """``svdq_mlp_params`` of svdq.h."""

    _fields_ = (
        ("fc1", Params),
        ("fc2", Params),
        ("workspace", ctypes.c_void_p),
        ("workspace_bytes", ctypes.c_size_t),
    )


_SIZE = ctypes.POINTER(ctypes.c_size_t)
_STREAM = ctypes.c_void_p
_ARGTYPES: dict[str, tuple[Any, ...]] = {
    **{f"svdq_linear{part}": (ctypes.POINTER(Params), _STREAM) for part in ("", "_quantize", "_gemm", "_portable")},
    "svdq_workspace_bytes": (*(ctypes.c_int32,) * 5, _SIZE),
    "svdq_mlp": (ctypes.POINTER(MlpParams), _STREAM),
    "svdq_mlp_workspace_bytes": (ctypes.POINTER(MlpParams), _SIZE),
}


def declare(library: ctypes.CDLL) -> ctypes.CDLL:
    """Tell ctypes the types of the C API's functions, of those that the library has; returns the library."""
    for name, argtypes in _ARGTYPES.items():
        if function := getattr(library, name, None):
            function.argtypes = argtypes
    for name in ("svdq_status_string", "svdq_version"):
        if function := getattr(library, name, None):
            function.restype = ctypes.c_char_p
    return library


@cache
def load_library() -> ctypes.CDLL:
    """libsvdq.so with its argument types.

    Raises:
        ArtifactError: not built, or not loadable.
    """
    path = locate(KERNELS, KERNELS_ENV)
    try:
        return declare(ctypes.CDLL(str(path)))
    except OSError as error:
        raise ArtifactError(str(path), str(error), "the built kernel library", f"{BUILD_HINT}.") from error


def linear(x: Tensor, weights: SvdqWeights) -> Tensor:
    """Run one linear on the current stream of x's device.

    Args:
        x: [M, K] f16 or bf16, CUDA, contiguous.
        weights: of x's dtype where the contract has it: the kernels read raw bits.

    Returns:
        y [M, N_out] in x's dtype.

    Raises:
        ShapeError, UnsupportedError: see SvdqWeights.check; x of another dtype; or what the library's status says, such
            as no kernel for this GPU.
    """
    if x.dtype not in DTYPES:
        raise UnsupportedError("svdq::linear on CUDA", f"x is {x.dtype}", "float16 or bfloat16")
    weights.check("svdq::linear on CUDA", x.dtype)
    library = load_library()
    m, n, k, r = len(x), weights.n, weights.k, weights.rank
    held = [_aligned(x), *(_aligned(w.to(x.device)) for w in weights.tensors.values())]
    with torch.cuda.device(x.device):
        size = ctypes.c_size_t()
        _check(library, library.svdq_workspace_bytes(weights.format.index, m, n, k, r, ctypes.byref(size)))
        workspace = torch.empty(max(size.value, 16), dtype=torch.uint8, device=x.device)
        y = torch.empty(m, weights.activation.n_out(n), dtype=x.dtype, device=x.device)
        params = Params(
            weights.format.index,
            ACTIVATIONS.index(weights.activation),
            DTYPES[x.dtype],
            int(weights.act_unsigned),
            weights.act_shift,
            m,
            n,
            k,
            r,
            *(t.data_ptr() for t in held),
            y.data_ptr(),
            workspace.data_ptr(),
            size.value,
        )
        _check(library, library.svdq_linear(ctypes.byref(params), torch.cuda.current_stream().cuda_stream))
    return y


def _aligned(t: Tensor) -> Tensor:
    """Contiguous and 16-byte aligned, as svdq.h asks; a view into the middle of a tensor may be neither."""
    t = t.contiguous()
    return t if t.data_ptr() % 16 == 0 else t.clone()


def _check(library: ctypes.CDLL, status: int) -> None:
    if status:
        text = library.svdq_status_string(status).decode().rstrip(".")
        raise UnsupportedError("svdq::linear on CUDA", text, "a linear that the kernel library runs")
