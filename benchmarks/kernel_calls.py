"""The C API (plugins/include/svdq/svdq.h) on torch tensors, for benchmarks and kernel tests."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from svdq_trt.base.libraries import KERNELS, KERNELS_ENV, locate
from svdq_trt.contract.formats import FORMATS
from svdq_trt.nn import capi
from svdq_trt.nn.capi import MlpParams, Params

ACTIVATIONS = {a.name.lower(): i for i, a in enumerate(capi.ACTIVATIONS)}


def find_library() -> Path | None:
    """$SVDQ_LIBRARY, else the newest libsvdq.so under a build folder of this checkout, else the installed one."""
    if named := os.environ.get(KERNELS_ENV):
        return Path(named)
    installed = locate(KERNELS, KERNELS_ENV)
    built = [*Path(__file__).parent.parent.glob("build*/**/libsvdq.so"), *([installed] if installed.is_file() else [])]
    return max(built, key=lambda p: p.stat().st_mtime, default=None)


class Library:
    """libsvdq.so, with statuses turned into RuntimeError."""

    def __init__(self, path: Path) -> None:
        """Load the library; raises OSError if it cannot be."""
        self.c = capi.declare(ctypes.CDLL(str(path)))

    def workspace_bytes(self, fmt: str, m: int, n: int, k: int, r: int) -> int:
        """Bytes of workspace for sizes up to (m, n, k, r)."""
        size = ctypes.c_size_t()
        status = self.c.svdq_workspace_bytes(FORMATS[fmt].index, m, n, k, r, ctypes.byref(size))
        self._check(status, "workspace_bytes")
        return size.value

    def mlp_workspace_bytes(self, params: MlpParams) -> int:
        """Bytes of workspace for these sizes."""
        size = ctypes.c_size_t()
        self._check(self.c.svdq_mlp_workspace_bytes(ctypes.byref(params), ctypes.byref(size)), "mlp_workspace_bytes")
        return size.value

    def call(self, name: str, params: Params | MlpParams) -> None:
        """Enqueue svdq_linear, svdq_linear_quantize, svdq_linear_gemm or svdq_mlp on torch's current stream."""
        stream = torch.cuda.current_stream().cuda_stream
        self._check(getattr(self.c, name)(ctypes.byref(params), stream), name)

    @staticmethod
    def _check(status: int, what: str) -> None:
        if status != 0:
            raise RuntimeError(f"{what}: status {status}")


@dataclass
class Linear:
    """One linear's tensors on the GPU and the struct that points to them."""

    library: Library
    params: Params
    tensors: dict[str, torch.Tensor] = field(repr=False)

    @property
    def y(self) -> torch.Tensor:
        """[M, N_out], filled by run()."""
        return self.tensors["y"]

    def run(self, what: str = "svdq_linear") -> None:
        """Enqueue one call on the current stream."""
        self.library.call(what, self.params)

    def runner(self, what: str = "svdq_linear") -> Callable[[], None]:
        """Return a callable that does run(what)."""
        return lambda: self.run(what)


def make_linear(
    library: Library,
    fmt: str,
    *,
    x: torch.Tensor,
    qweight: torch.Tensor,
    wscale: torch.Tensor,
    act_mul: torch.Tensor,
    lora_down: torch.Tensor,
    lora_up: torch.Tensor,
    bias: torch.Tensor,
    wscale2: torch.Tensor,
    activation: str = "none",
    **numeric: Any,
) -> Linear:
    """Bind CUDA tensors in the op contract's layout; y starts as NaN, the workspace as 0xff bytes."""
    (m, k), n, r = x.shape, qweight.shape[0], lora_down.shape[0]
    n_out = n // 2 if activation == "geglu" else n
    y = torch.full((m, n_out), float("nan"), dtype=x.dtype, device=x.device)
    size = library.workspace_bytes(fmt, m, n, k, r)
    workspace = torch.full((max(size, 1),), 255, dtype=torch.uint8, device=x.device)
    tensors = {
        "x": x,
        "qweight": qweight,
        "wscale": wscale,
        "act_mul": act_mul,
        "lora_down": lora_down,
        "lora_up": lora_up,
        "bias": bias,
        "wscale2": wscale2,
        "y": y,
        "workspace": workspace,
    }
    params = Params(
        format=FORMATS[fmt].index,
        activation=ACTIVATIONS[activation],
        dtype=capi.DTYPES[x.dtype],
        m=m,
        n=n,
        k=k,
        r=r,
        workspace_bytes=size,
        **numeric,
    )
    for name, tensor in tensors.items():
        if not tensor.is_cuda or not tensor.is_contiguous():
            raise ValueError(f"{name}: want a contiguous CUDA tensor")
        setattr(params, name, tensor.data_ptr())
    return Linear(library, params, tensors)


@dataclass
class Mlp:
    """svdq_mlp of two linears, the second of which reads the first one's y where each is called alone."""

    fc1: Linear
    fc2: Linear
    params: MlpParams
    workspace: torch.Tensor = field(repr=False)

    def run(self) -> None:
        """Enqueue svdq_mlp on the current stream."""
        self.fc1.library.call("svdq_mlp", self.params)

    def run_chain(self) -> None:
        """Enqueue the two linears."""
        self.fc1.run()
        self.fc2.run()


def make_mlp(fc1: Linear, fc2: Linear) -> Mlp:
    """Both linears' tensors, and a workspace of 0xff bytes."""
    params = MlpParams(fc1=fc1.params, fc2=fc2.params)
    params.workspace_bytes = fc1.library.mlp_workspace_bytes(params)
    workspace = torch.full((params.workspace_bytes,), 255, dtype=torch.uint8, device=fc1.y.device)
    params.workspace = workspace.data_ptr()
    return Mlp(fc1, fc2, params, workspace)
