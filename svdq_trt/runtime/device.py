"""Device memory, one stream and CUDA graphs: by torch, or by pycuda for users without torch."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from svdq_trt.base.errors import UnsupportedError, UsageError
from svdq_trt.base.extras import install

MEMORIES = ("auto", "torch", "pycuda")


class DeviceMemory(Protocol):
    """What a session needs from one GPU. A buffer is whatever `allocate` returns.

    Attributes:
        stream: a cudaStream_t as int; all work is on it.
    """

    stream: int

    def running(self) -> AbstractContextManager[None]:
        """Context with GPU and `stream` current; `stream` waits for the caller's work, which later waits for it."""

    def allocate(self, dtype: str, count: int) -> Any:
        """A zeroed buffer of `count` numbers; `dtype` is one of numpy's names or bfloat16."""

    def address(self, buffer: Any) -> int:
        """The buffer's device address."""

    def write(self, buffer: Any, value: Any) -> None:
        """Copy a tensor or an array to the front of the buffer, in stream order."""

    def tensor(self, buffer: Any, shape: tuple[int, ...]) -> Any:
        """The front of the buffer as a torch tensor, not copied."""

    def array(self, buffer: Any, shape: tuple[int, ...]) -> np.ndarray:
        """A copy of the front of the buffer on the host; waits for `stream`."""

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture what `work` puts on `stream` as a CUDA graph; the result launches it."""

    def synchronize(self) -> None:
        """Wait for `stream`."""


def choose_memory(memory: str) -> str:
    """Choose torch or pycuda, without importing either.

    Args:
        memory: "torch", "pycuda", or "auto": pycuda where it is installed and the process has not imported torch.

    Raises:
        UsageError: another name. UnsupportedError: the library is missing.
    """
    if memory not in MEMORIES:
        raise UsageError("memory", f"'{memory}'", f"one of {', '.join(MEMORIES)}")
    has_torch, has_pycuda = (importlib.util.find_spec(name) is not None for name in ("torch", "pycuda"))
    if memory == "auto":
        if not (has_torch or has_pycuda):
            raise UnsupportedError("Session", "neither torch nor pycuda is installed", "one of them", install("pycuda"))
        memory = "pycuda" if has_pycuda and "torch" not in sys.modules else "torch"
    if not {"torch": has_torch, "pycuda": has_pycuda}[memory]:
        raise UnsupportedError(f"memory='{memory}'", f"{memory} is not installed", memory, install(memory))
    return memory


def open_device(memory: str, index: int) -> DeviceMemory:
    """Open device `index` by the library that `choose_memory` chose. Raises UnsupportedError: it sees no such GPU."""
    if memory == "pycuda":
        from svdq_trt.runtime.device_pycuda import PycudaMemory

        return PycudaMemory(index)
    from svdq_trt.runtime.device_torch import TorchMemory

    return TorchMemory(index)
