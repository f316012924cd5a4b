"""TensorRT's classes as far as a Session uses them, over ONNX Runtime and CPU tensors: no GPU runs it here."""

from __future__ import annotations

import contextlib
import types
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import torch

from svdq_trt.runtime import session
from svdq_trt.runtime.onnx_graph import read_graph
from svdq_trt.runtime.shapes import as_array, as_tensor

GPU = "a CPU"
TYPES = {"float32": "FLOAT", "float16": "HALF", "int64": "INT64", "bool": "BOOL"}


class HostMemory:
    """runtime.device.DeviceMemory on the CPU.

    Attributes:
        buffers: all by address. captures: CUDA graphs that were made.
    """

    stream = 0

    def __init__(self) -> None:
        self.buffers: dict[int, torch.Tensor] = {}
        self.captures = 0

    running = contextlib.nullcontext

    def allocate(self, dtype: str, count: int) -> torch.Tensor:
        buffer = torch.zeros(count, dtype=getattr(torch, dtype))
        self.buffers[buffer.data_ptr()] = buffer
        return buffer

    def address(self, buffer: torch.Tensor) -> int:
        return buffer.data_ptr()

    def write(self, buffer: torch.Tensor, value: Any) -> None:
        self.tensor(buffer, tuple(value.shape)).copy_(as_tensor(value))

    def tensor(self, buffer: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
        return buffer[: int(np.prod(shape))].view(shape)

    def array(self, buffer: torch.Tensor, shape: tuple[int, ...]) -> np.ndarray:
        return as_array(self.tensor(buffer, shape)).copy()

    def capture(self, work: Any) -> Any:
        self.captures += 1
        return work

    def synchronize(self) -> None:
        pass


def on_host(monkeypatch: Any, memory: HostMemory, open_engine: Any, kind: str = "torch") -> None:
    """Make a Session open what `open_engine` returns, on `memory`, which is then said to be of that kind."""
    monkeypatch.setattr(session, "choose_memory", lambda memory: kind)
    monkeypatch.setattr(session, "open_device", lambda kind, device: memory)
    monkeypatch.setattr(session, "open_engine", open_engine)
    monkeypatch.setattr(session, "gpu_name", lambda device: GPU)
    monkeypatch.setattr(session, "on_gpu", lambda device: contextlib.nullcontext())


class Engine:
    """ICudaEngine and IExecutionContext in one, of a graph whose sizes are fixed.

    Attributes:
        runs: how often it ran. addresses: of its tensors. device_memory_size_v2: bytes that its activations take.
    """

    def __init__(self, onnx: Path, memory: HostMemory, activations: int = 256) -> None:
        self._session, self._memory = ort.InferenceSession(str(onnx)), memory
        self._inputs = {profile.name: profile for profile in read_graph(onnx).inputs}
        self._outputs = {output.name: tuple(output.shape) for output in self._session.get_outputs()}
        self._dtypes = {name: p.dtype for name, p in self._inputs.items()} | read_graph(onnx).outputs
        self._names = [*self._inputs, *self._outputs]
        self._given: dict[str, tuple[int, ...]] = {}
        self.addresses: dict[str, int] = {}
        self.num_io_tensors, self.runs = len(self._names), 0
        self.device_memory_size_v2, self._waits = activations, False

    def get_tensor_name(self, index: int) -> str:
        return self._names[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name in self._inputs else "out"

    def get_tensor_dtype(self, name: str) -> Any:
        return types.SimpleNamespace(name=TYPES[self._dtypes[name]])

    def get_tensor_profile_shape(self, name: str, _profile: int) -> list[tuple[int, ...]]:
        return [self._inputs[name].min] * 3

    def create_runtime_config(self) -> RuntimeConfig:
        return RuntimeConfig()

    def create_execution_context(self, how: str | RuntimeConfig) -> Engine:
        """By a strategy, or as TensorRT-RTX by a config."""
        self._waits = (how.strategy if isinstance(how, RuntimeConfig) else how) == "user managed"
        return self

    def set_device_memory(self, address: int, size: int) -> None:
        assert size == len(self._memory.buffers[address]) >= self.device_memory_size_v2
        self._waits = False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self._given[name] = tuple(shape)
        return True

    def infer_shapes(self) -> list[str]:
        return []  # all are fixed

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._outputs[name]

    def set_tensor_address(self, name: str, address: int) -> None:
        self.addresses[name] = address

    def execute_async_v3(self, _stream: int) -> bool:
        assert not self._waits, "no memory for activations"
        feed = {name: as_array(self._tensor(name, shape)) for name, shape in self._given.items()}
        for (name, shape), value in zip(self._outputs.items(), self._session.run(None, feed), strict=True):
            self._tensor(name, shape).copy_(torch.from_numpy(value))
        self.runs += 1
        return True

    def _tensor(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        return self._memory.tensor(self._memory.buffers[self.addresses[name]], shape)


class RuntimeConfig:
    """IRuntimeConfig of TensorRT-RTX, and the IRuntimeCache that it makes, in one.

    Attributes:
        given: what was deserialized. strategy: of the activations' memory.
    """

    def __init__(self) -> None:
        self.given: bytes | None = None
        self.strategy = ""

    def set_execution_context_allocation_strategy(self, strategy: str) -> None:
        self.strategy = strategy

    def create_runtime_cache(self) -> RuntimeConfig:
        return self

    def set_runtime_cache(self, cache: RuntimeConfig) -> None:
        assert cache is self

    def deserialize(self, blob: bytes) -> bool:
        self.given = blob
        return True

    def serialize(self) -> bytes:
        return b"kernels"


MODULE = types.SimpleNamespace(
    TensorIOMode=types.SimpleNamespace(INPUT="in", OUTPUT="out"),
    ExecutionContextAllocationStrategy=types.SimpleNamespace(STATIC="static", USER_MANAGED="user managed"),
)
MODULE_RTX = types.SimpleNamespace(
    **vars(MODULE),
    IRuntimeCache=RuntimeConfig,
    DynamicShapesKernelSpecializationStrategy=types.SimpleNamespace(EAGER=0),
)
