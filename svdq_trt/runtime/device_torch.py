"""Device memory, stream and graphs by torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from svdq_trt.base.errors import UnsupportedError
from svdq_trt.runtime.shapes import as_array, as_tensor


class TorchMemory:
    """device.DeviceMemory by torch; buffers are flat CUDA tensors."""

    def __init__(self, index: int) -> None:
        if not torch.cuda.is_available():
            raise UnsupportedError(
                "torch", "sees no CUDA GPU", "a CUDA build of torch and a GPU", "Install torch with CUDA."
            )
        if index >= torch.cuda.device_count():
            raise UnsupportedError(f"CUDA device {index}", "not found", f"0 to {torch.cuda.device_count() - 1}")
        self.device = torch.device("cuda", index)
        with torch.cuda.device(self.device):
            self._stream = torch.cuda.Stream()
        self.stream: int = self._stream.cuda_stream

    @contextmanager
    def running(self) -> Iterator[None]:
        """Context with the GPU and our stream current; the caller's stream is torch's current one."""
        caller = torch.cuda.current_stream(self.device)
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            self._stream.wait_stream(caller)
            try:
                yield
            finally:  # after an error too: what was put on the stream goes on
                caller.wait_stream(self._stream)

    def allocate(self, dtype: str, count: int) -> torch.Tensor:
        """A flat tensor of `count` zeros."""
        return torch.zeros(count, dtype=getattr(torch, dtype), device=self.device)

    def address(self, buffer: torch.Tensor) -> int:
        """Device address of the first element."""
        return buffer.data_ptr()

    def write(self, buffer: torch.Tensor, value: Any) -> None:
        """Copy a tensor or an array from host or device."""
        tensor = as_tensor(value)
        self.tensor(buffer, tuple(tensor.shape)).copy_(tensor, non_blocking=True)
        if tensor.is_cuda:
            tensor.record_stream(self._stream)  # its memory must not be reused before the copy

    def tensor(self, buffer: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        """A view of the front of the buffer."""
        return buffer[: math.prod(shape)].view(shape)

    def array(self, buffer: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray:
        """A copy on the host, made on torch's current stream, which waits for ours."""
        return as_array(self.tensor(buffer, shape))

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Capture a graph of this thread's work only: other threads may use CUDA meanwhile."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
            work()
        return graph.replay

    def synchronize(self) -> None:
        """Wait for the stream."""
        self._stream.synchronize()
