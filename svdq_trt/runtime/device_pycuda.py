"""Device memory and stream by pycuda, for numpy users without torch.

The primary context is used, which TensorRT and all CUDA libraries of the process share. It is current only
while a session works, so the caller's own pycuda contexts stay as they are.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycuda.driver as cuda

from svdq_trt.base.errors import SvdqError, UnsupportedError
from svdq_trt.runtime.shapes import is_tensor, numpy_dtype

_NON_BLOCKING = 1  # CU_STREAM_NON_BLOCKING: does not wait for the legacy default stream


@dataclass(frozen=True)
class Buffer:
    """Device memory that holds numbers of one type."""

    memory: Any  # DeviceAllocation
    dtype: np.dtype[Any]


class PycudaMemory:
    """device.DeviceMemory by pycuda; takes and returns numpy arrays only."""

    def __init__(self, index: int) -> None:
        try:
            cuda.init()
            device = cuda.Device(index)
        except cuda.Error as error:
            raise UnsupportedError(
                f"CUDA device {index}", f"not found ({error})", "an NVIDIA GPU and its driver"
            ) from error
        self._context = device.retain_primary_context()
        with self._current():
            self._stream = cuda.Stream(_NON_BLOCKING)
        self.stream: int = self._stream.handle

    @contextmanager
    def running(self) -> Iterator[None]:
        """Context with the GPU current; callers with numpy have no stream to wait for."""
        with self._current():
            yield

    def allocate(self, dtype: str, count: int) -> Buffer:
        """A zeroed buffer, allocated by cuMemAlloc."""
        kind = numpy_dtype(dtype)
        memory = cuda.mem_alloc(count * kind.itemsize)
        cuda.memset_d8_async(memory, 0, count * kind.itemsize, self._stream)
        return Buffer(memory, kind)

    def address(self, buffer: Buffer) -> int:
        """The device address as int."""
        return int(buffer.memory)

    def write(self, buffer: Buffer, value: Any) -> None:
        """Copy an array from the host; pageable memory is read before this returns."""
        if is_tensor(value):
            raise UnsupportedError(
                "Session.run",
                "a torch tensor to a session on pycuda",
                "numpy arrays",
                "Open it with Session(..., memory='torch').",
            )
        host = np.ascontiguousarray(value)
        if host.nbytes:
            cuda.memcpy_htod_async(buffer.memory, host.view(np.uint8).reshape(-1), self._stream)

    def tensor(self, buffer: Buffer, shape: tuple[int, ...]) -> Any:
        """Raise UnsupportedError: pycuda has no torch tensors."""
        raise UnsupportedError(
            "Session.run",
            "torch tensors asked of a session on pycuda",
            "numpy arrays",
            "Open it with Session(..., memory='torch').",
        )

    def array(self, buffer: Buffer, shape: tuple[int, ...]) -> np.ndarray:
        """A copy on the host, made after everything on the stream."""
        host = np.empty(math.prod(shape), buffer.dtype)
        with self._current():
            if host.nbytes:
                cuda.memcpy_dtoh_async(host.view(np.uint8), buffer.memory, self._stream)
            self._stream.synchronize()
        return host.reshape(shape)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture a graph of this thread's work only."""
        return _Graph(self.stream, work).launch

    def synchronize(self) -> None:
        """Wait for the stream."""
        with self._current():
            self._stream.synchronize()

    @contextmanager
    def _current(self) -> Iterator[None]:
        self._context.push()
        try:
            yield
        finally:
            cuda.Context.pop()


class _Graph:
    """A CUDA graph made by the driver's own functions, which pycuda does not wrap."""

    def __init__(self, stream: int, work: Callable[[], None]) -> None:
        self._driver, self._stream = ctypes.CDLL("libcuda.so.1"), ctypes.c_void_p(stream)
        graph, self._exec = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamBeginCapture_v2", self._stream, 1)  # 1: CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        try:
            work()
        finally:  # a stream left in capture could do nothing else
            self._call("cuStreamEndCapture", self._stream, ctypes.byref(graph))
        try:
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(self._exec), graph, ctypes.c_ulonglong(0))
        finally:
            self._call("cuGraphDestroy", graph)

    def launch(self) -> None:
        self._call("cuGraphLaunch", self._exec, self._stream)

    def __del__(self) -> None:
        if self._exec:
            with suppress(SvdqError):
                self._call("cuGraphExecDestroy", self._exec)

    def _call(self, name: str, *args: Any) -> None:
        code = getattr(self._driver, name)(*args)
        if code:
            raise SvdqError("CUDA graph", f"{name} returned {code}", "0", "Open the session with cuda_graph=False.")
