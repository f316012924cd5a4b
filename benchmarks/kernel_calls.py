"""The C API (plugins/include/svdq/svdq.h) on torch tensors, for benchmarks and kernel tests.

They reach libsvdq.so on a GPU, and in tests/cpu the kernels compiled for the CPU (tests/cpu/emulation).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from svdq_trt.base.libraries import KERNELS, KERNELS_ENV, locate
from svdq_trt.contract.formats import FORMATS, Activation
from svdq_trt.nn import capi
from svdq_trt.nn.capi import MlpParams, Params

Runner = Callable[[], None]  # enqueues something on the current stream
OK, BAD_ARGUMENT, UNSUPPORTED, WORKSPACE, CUDA = range(5)  # svdq_status
ALIGNMENT = 256  # bytes
FENCE_ROWS = 4  # rows of y on either side that a call must not write


def find_library() -> Path | None:
    """$SVDQ_LIBRARY, else the newest libsvdq.so under a build folder of this checkout, else the installed one."""
    if named := os.environ.get(KERNELS_ENV):
        return Path(named)
    installed = locate(KERNELS, KERNELS_ENV)
    built = [*Path(__file__).parent.parent.glob("build*/**/libsvdq.so"), *([installed] if installed.is_file() else [])]
    return max(built, key=lambda p: p.stat().st_mtime, default=None)


class Library:
    """libsvdq.so; `c` has its functions, which return statuses, and the methods turn these into RuntimeError."""

    def __init__(self, path: Path, device: str = "cuda") -> None:
        """Load the library, whose kernels run on `device`; raises OSError if it cannot be loaded."""
        self.device = device
        self.c = capi.declare(ctypes.CDLL(str(path)))

    def workspace_bytes(self, fmt: str, m: int, n: int, k: int, r: int) -> int:
        """Bytes of workspace for sizes up to (m, n, k, r)."""
        size = ctypes.c_size_t()
        status = self.c.svdq_workspace_bytes(FORMATS[fmt].index, m, n, k, r, ctypes.byref(size))
        self.check(status, "svdq_workspace_bytes")
        return size.value

    def mlp_workspace_bytes(self, params: MlpParams) -> int:
        """Bytes of workspace for these sizes."""
        size = ctypes.c_size_t()
        status = self.c.svdq_mlp_workspace_bytes(ctypes.byref(params), ctypes.byref(size))
        self.check(status, "svdq_mlp_workspace_bytes")
        return size.value

    def check(self, status: int, what: str) -> None:
        """Raise RuntimeError unless `status` is OK."""
        if status != OK:
            text = self.c.svdq_status_string(status).decode()
            raise RuntimeError(f"{what}: {text}, CUDA error {self.c.svdq_last_cuda_error()}")


class Fenced:
    """Bytes of 0xff, which are NaN in f16 and bf16, between two fences of such bytes; aligned."""

    def __init__(self, nbytes: int, fence: int, device: str) -> None:
        """`fence`: bytes on either side, rounded up to the alignment."""
        fence = -(-fence // ALIGNMENT) * ALIGNMENT
        raw = torch.full((nbytes + 2 * fence + ALIGNMENT,), 255, dtype=torch.uint8, device=device)
        start = -raw.data_ptr() % ALIGNMENT + fence
        self.inside = raw[start : start + nbytes]
        self.fences = raw[start - fence : start], raw[start + nbytes : start + nbytes + fence]

    def check(self, name: str) -> None:
        """Raise RuntimeError where a fence was written."""
        if not all(bool((fence == 255).all()) for fence in self.fences):
            raise RuntimeError(f"written outside of {name}")


class Call:
    """What a linear and an MLP have in common: a struct, y and a workspace between fences, a function to call."""

    library: Library
    params: Params | MlpParams
    entry: str  # of the C API
    y: Tensor  # [M, N_out]; NaN at first
    workspace: Fenced

    def launch(self, stream: int | None = None, entry: str = "") -> int:
        """Enqueue on `stream`, by default torch's current one; returns the status and waits for nothing.

        `entry`: another function of the C API than the whole, such as svdq_linear_gemm.
        """
        if stream is None:
            stream = torch.cuda.current_stream().cuda_stream if self.library.device == "cuda" else 0
        return int(getattr(self.library.c, entry or self.entry)(ctypes.byref(self.params), stream))

    def run(self, entry: str = "") -> None:
        """Launch on the current stream; raises RuntimeError where that is refused."""
        self.library.check(self.launch(entry=entry), entry or self.entry)

    def runner(self, entry: str = "") -> Runner:
        """Return a callable that does run(entry)."""
        return partial(self.run, entry)

    def check_fences(self) -> None:
        """Raise RuntimeError where something was written around y or the workspace."""
        self.workspace.check("the workspace")


@dataclass
class LinearCall(Call):
    """One linear's tensors and the struct that points to them, whose fields may be changed before a launch."""

    library: Library
    params: Params
    tensors: dict[str, Tensor] = field(repr=False)  # x and the weights
    y: Tensor = field(repr=False)  # inside of `output`
    output: Fenced = field(repr=False)
    workspace: Fenced = field(repr=False)
    entry = "svdq_linear"

    def check_fences(self) -> None:
        """Raise RuntimeError where something was written around y or the workspace."""
        super().check_fences()
        self.output.check("y")


def bind_linear(
    library: Library,
    fmt: str,
    *,
    x: Tensor,
    qweight: Tensor,
    wscale: Tensor,
    act_mul: Tensor,
    lora_down: Tensor,
    lora_up: Tensor,
    bias: Tensor,
    wscale2: Tensor,
    activation: str = "none",
    **numeric: Any,
) -> LinearCall:
    """Bind tensors in the op contract's layout, with a y and a workspace of their own.

    Args:
        fmt: key of FORMATS.
        x: [M, K]; this and the other tensors as in svdq_trt/contract/ops.py, contiguous, on the library's device.
        activation: name in Activation, in small letters.
        numeric: act_unsigned, act_shift.
    """
    (m, k), n, r = x.shape, qweight.shape[0], lora_down.shape[0]
    act = Activation[activation.upper()]
    size, n_out = library.workspace_bytes(fmt, m, n, k, r), act.n_out(n)
    row = n_out * x.element_size()
    output, workspace = Fenced(m * row, FENCE_ROWS * row, library.device), Fenced(size, ALIGNMENT, library.device)
    tensors = {
        "x": x,
        "qweight": qweight,
        "wscale": wscale,
        "act_mul": act_mul,
        "lora_down": lora_down,
        "lora_up": lora_up,
        "bias": bias,
        "wscale2": wscale2,
    }
    params = Params(
        format=FORMATS[fmt].index,
        activation=capi.ACTIVATIONS.index(act),
        dtype=capi.DTYPES[x.dtype],
        m=m,
        n=n,
        k=k,
        r=r,
        y=output.inside.data_ptr(),
        workspace=workspace.inside.data_ptr(),
        workspace_bytes=size,
        **numeric,
    )
    for name, tensor in tensors.items():
        if tensor.device.type != library.device or not tensor.is_contiguous():
            raise ValueError(f"{name}: want a contiguous tensor on {library.device}")
        setattr(params, name, tensor.data_ptr())
    y = output.inside.view(x.dtype).view(m, n_out)
    return LinearCall(library, params, tensors, y, output, workspace)


@dataclass
class MlpCall(Call):
    """svdq_mlp of two linears, of which its struct has the operands and one y; each can also be called alone."""

    library: Library
    fc1: LinearCall
    fc2: LinearCall
    params: MlpParams
    y: Tensor = field(repr=False)  # fc2's
    workspace: Fenced = field(repr=False)
    entry = "svdq_mlp"

    def run_chain(self) -> None:
        """Enqueue the two linears, where fc2's x is fc1's y."""
        self.fc1.run()
        self.fc2.run()

    def check_fences(self) -> None:
        """Raise RuntimeError where something was written around y or the workspace."""
        super().check_fences()
        self.fc2.check_fences()


def bind_mlp(fc1: LinearCall, fc2: LinearCall) -> MlpCall:
    """Both linears' tensors, and a workspace; fc1's y and fc2's x, which svdq_mlp does not read, are no pointers."""
    params = MlpParams(fc1=fc1.params, fc2=fc2.params)
    params.fc1.y = params.fc1.workspace = params.fc2.x = params.fc2.workspace = None
    params.fc1.workspace_bytes = params.fc2.workspace_bytes = 0
    params.workspace_bytes = fc1.library.mlp_workspace_bytes(params)
    workspace = Fenced(params.workspace_bytes, ALIGNMENT, fc1.library.device)
    params.workspace = workspace.inside.data_ptr()
    return MlpCall(fc1.library, fc1, fc2, params, fc2.y, workspace)
