"""The kernels' C API (plugins/include/svdq/svdq.h) on torch CUDA tensors, by ctypes.

No build against torch: the library knows neither torch nor Python, so any torch release works with it.
"""

from __future__ import annotations

import ctypes
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from svdq_trt.base.errors import ArtifactError, UnsupportedError
from svdq_trt.base.libraries import BUILD_HINT, KERNELS, KERNELS_ENV, locate
from svdq_trt.contract.attention import Size, Source
from svdq_trt.contract.formats import Activation
from svdq_trt.contract.ops import INPUTS
from svdq_trt.contract.weights import SvdqWeights

if TYPE_CHECKING:
    from svdq_trt.nn.attention import Call

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


class AttentionStream(ctypes.Structure):
    """``svdq_attention_stream`` of svdq.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("q_tokens", "kv_tokens")),
        *((name, ctypes.c_void_p) for name in "qkv"),
        *((name, ctypes.c_int64) for name in ("q_stride", "kv_stride")),
        *((name, ctypes.c_void_p) for name in ("q_norm", "k_norm", "y")),
    )


class AttentionParams(ctypes.Structure):
    """``svdq_attention_params`` of svdq.h."""

    _fields_ = (
        *((name, ctypes.c_int32) for name in ("dtype", "batch", "heads", "kv_heads", "head_size", "num_streams")),
        ("streams", AttentionStream * 2),
        *((name, ctypes.c_void_p) for name in ("cos", "sin", "bias")),
        *((name, ctypes.c_float) for name in ("scale", "eps")),
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
    **{f"svdq_attention{part}": (ctypes.POINTER(AttentionParams), _STREAM) for part in ("", "_portable")},
    "svdq_attention_workspace_bytes": (ctypes.POINTER(AttentionParams), _SIZE),
    "svdq_attention_supports": (ctypes.c_int32,) * 3,
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


def supports_attention(call: Call) -> bool:
    """Is there a kernel for the call's head size and dtype on the GPU where its tensors are."""
    x = call.first
    if x.dtype not in DTYPES:
        return False
    major, minor = torch.cuda.get_device_capability(x.device)
    return bool(load_library().svdq_attention_supports(call.head_size, DTYPES[x.dtype], 10 * major + minor))


def attention(call: Call) -> tuple[Tensor, ...]:
    """Run one attention on the current stream of its tensors' device.

    Args:
        call: checked; f16 or bf16 on CUDA.

    Returns:
        y [B, L, H·D], and in Joint added_y [B, T, H·D], in the act dtype.

    Raises:
        UnsupportedError: what the library's status says, such as no kernel for this GPU.
    """
    library, name, act, device = load_library(), "attention", call.first.dtype, call.first.device
    held = {
        spec.name: _aligned(call.tensors[spec.name].to(torch.float32 if spec.name in ("cos", "sin") else act))
        for spec in call.op.inputs
    }
    shapes = [[call.sizes[dim] for dim in out.dims] for out in call.op.outputs]
    outputs = tuple(torch.empty(shape, dtype=act, device=device) for shape in shapes)
    params = attention_params(call, held, outputs)
    with torch.cuda.device(device):
        size = ctypes.c_size_t()
        _check(library, library.svdq_attention_workspace_bytes(ctypes.byref(params), ctypes.byref(size)), name)
        workspace = torch.empty(max(size.value, 16), dtype=torch.uint8, device=device)
        params.workspace, params.workspace_bytes = workspace.data_ptr(), size.value
        _check(library, library.svdq_attention(ctypes.byref(params), torch.cuda.current_stream().cuda_stream), name)
    return outputs


def attention_params(call: Call, held: dict[str, Tensor], outputs: tuple[Tensor, ...]) -> AttentionParams:
    """Point at a call's tensors; there is no workspace yet.

    Args:
        call: what is computed.
        held: its inputs, 16-byte aligned; they and the outputs must outlive the struct.
        outputs: y, and in Joint added_y.
    """
    s, sizes = call.settings, call.sizes
    if call.op.source is Source.JOINT:
        streams = [_own_stream(call, held, "added_", outputs[1]), _own_stream(call, held, "", outputs[0])]
    elif call.op.source is Source.SELF:
        streams = [_own_stream(call, held, "", outputs[0])]
    else:
        kv, row = held["kv"], s.kv_heads * call.head_size
        at = kv.data_ptr() + s.kv_part * 2 * row * kv.element_size()
        keys = (at, at + row * kv.element_size())
        strides = (sizes[Size.Q], sizes[Size.KV])
        streams = [
            AttentionStream(
                sizes[Size.L], sizes[Size.T], held["q"].data_ptr(), *keys, *strides, None, None, outputs[0].data_ptr()
            )
        ]
    return AttentionParams(
        DTYPES[call.first.dtype],
        sizes[Size.B],
        s.heads,
        s.kv_heads,
        call.head_size,
        len(streams),
        (AttentionStream * 2)(*streams),
        *(held[t].data_ptr() if t in held else None for t in ("cos", "sin", "bias")),
        s.scale,
        s.eps,
    )


def _own_stream(call: Call, held: dict[str, Tensor], prefix: str, y: Tensor) -> AttentionStream:
    """The part of the token sequence whose q, k and v stand side by side."""
    qkv, d, s = held[f"{prefix}qkv"], call.head_size, call.settings
    starts = [qkv.data_ptr() + heads * d * qkv.element_size() for heads in (0, s.heads, s.heads + s.kv_heads)]
    norms = [held[name].data_ptr() if name in held else None for name in (f"{prefix}q_norm", f"{prefix}k_norm")]
    tokens, width = qkv.shape[1:]
    return AttentionStream(tokens, tokens, *starts, width, width, *norms, y.data_ptr())


def _aligned(t: Tensor) -> Tensor:
    """Contiguous and 16-byte aligned, as svdq.h asks; a view into the middle of a tensor may be neither."""
    t = t.contiguous()
    return t if t.data_ptr() % 16 == 0 else t.clone()


def _check(library: ctypes.CDLL, status: int, op: str = "linear") -> None:
    if status:
        text = library.svdq_status_string(status).decode().rstrip(".")
        raise UnsupportedError(f"svdq::{op} on CUDA", text, "one that the kernel library runs")
