"""One plan of a session: its context, and its CUDA graph. Tensors are buffers by name that a session's parts share."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from svdq_trt.base.errors import SvdqError
from svdq_trt.runtime.activations import SharedActivations
from svdq_trt.runtime.context import Context
from svdq_trt.runtime.device import DeviceMemory
from svdq_trt.runtime.shapes import Shapes, input_names, output_names, trt_dtype_name


class Part:
    """A deserialized plan, ready to run on `memory`'s stream.

    Attributes:
        engine: ICudaEngine. context: IExecutionContext. inputs, outputs: names of its tensors, in its order.

    Args:
        trt: the TensorRT module. made: its context. logger: see opening.Opened.
        shared: memory for its activations; None: the context has its own.
    """

    def __init__(
        self, trt: Any, made: Context, logger: Any, memory: DeviceMemory, shared: SharedActivations | None
    ) -> None:
        self.engine, self.context, self._cache = made.engine, made.context, made.cache
        self._logger, self._memory = logger, memory
        self.inputs, self.outputs = input_names(trt, self.engine), output_names(trt, self.engine)
        self._shared, self._bound = shared, 0  # number of the buffer that the context has
        if shared is not None:
            shared.announce(self.engine.device_memory_size_v2)
        self._warm = False
        self._replay: Callable[[], None] | None = None

    def bind(self, shapes: Shapes, buffers: dict[str, Any], filled: Mapping[str, Any]) -> None:
        """Give every tensor its memory, for these shapes and all smaller ones; addresses never change.

        Args:
            shapes: of the inputs; the outputs' are added.
            buffers: flat ones by name; those that are missing are added.
            filled: inputs that are somebody else's tensors.
        """
        self.set_shapes(shapes)
        for name in (*self.inputs, *self.outputs):
            if name in filled:
                self.context.set_tensor_address(name, filled[name].data_ptr())
                continue
            if name not in buffers:
                dtype = trt_dtype_name(self.engine.get_tensor_dtype(name))
                buffers[name] = self._memory.allocate(dtype, max(1, math.prod(shapes[name])))
            self.context.set_tensor_address(name, self._memory.address(buffers[name]))

    def set_shapes(self, shapes: Shapes) -> None:
        """Set the inputs' shapes, which `shapes` has, and add the outputs' to it. Raises SvdqError: refused."""
        self._replay, self._warm = None, False
        own = {name: shapes[name] for name in self.inputs if name in shapes}
        for name, shape in own.items():
            if not self.context.set_input_shape(name, shape):
                self._fail(f"input '{name}'", f"shape {list(shape)}")
        try:  # sizes that contradict each other, such as two batches
            unknown = self.context.infer_shapes()
        except RuntimeError:  # the bindings' way to say -1
            unknown = ["inputs"]
        if unknown:
            self._fail("inputs", "shapes " + ", ".join(f"{name} {list(shape)}" for name, shape in own.items()))
        shapes |= {name: tuple(self.context.get_tensor_shape(name)) for name in self.outputs}

    def run(self, cuda_graph: bool) -> None:
        """Put one run on the stream; as a CUDA graph from a shape's second run on, if asked for."""
        if self._shared is not None:
            self._take_activations(self._shared)
        if cuda_graph and self._warm:
            self._replay = self._replay or self._memory.capture(self._execute)
            self._replay()
            return
        self._execute()
        if not self._warm and self._cache is not None:
            self._cache.save()
        self._warm = True

    # ---- inside ------------------------------------------------------------------------------------------------

    def _take_activations(self, shared: SharedActivations) -> None:
        """Give the context the buffer of now, which another session may have replaced or, without memory, lost."""
        shared.reserve(self._memory, self.engine.device_memory_size_v2)
        if self._bound != shared.number:
            self._bound, self._replay = shared.number, None
            self.context.set_device_memory(self._memory.address(shared.buffer), shared.bytes)

    def _execute(self) -> None:
        if not self.context.execute_async_v3(self._memory.stream):
            self._fail("engine", "the run failed")

    def _fail(self, where: str, got: str) -> None:
        said = str(self._logger.errors)
        raise SvdqError(where, f"{got}{': ' + said if said else ''}", "a run that TensorRT accepts")
