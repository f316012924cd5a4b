"""``Session``: an engine folder that runs on torch tensors or numpy arrays.

    session = Session("engines/sdxl-sm_89")
    noise = session.run({"sample": latent, "timestep": t, ...})["out_sample"]

Streams: a session works on its own stream, after what the caller's current stream holds at the call; the
caller's stream then waits for it. So torch code before and after needs no synchronization, and the host never waits
unless numpy arrays are asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import torch

from svdq_trt.engine.profile import TensorProfile
from svdq_trt.errors import SvdqError, UnsupportedError
from svdq_trt.runtime.cache import RuntimeCache, cache_path
from svdq_trt.runtime.lora import Loras, LoraSet, check_inputs_match, open_slots, require_slots
from svdq_trt.runtime.opening import open_engine
from svdq_trt.runtime.shapes import as_array, as_tensor, check_inputs, input_profiles, output_names, trt_dtype_name

Shapes = dict[str, tuple[int, ...]]


class Session:
    """One engine, one execution context, one stream. Not thread-safe: one thread at a time.

    Attributes:
        manifest: the engine's manifest. lora: its LoRA slots; None without.
        inputs: what `run` takes, with the ranges of every dimension. output_names: what it returns.
        compiled: False when the runtime cache spared the compilation at start.

    Args:
        engine_dir: folder with manifest.json and model.plan.
        allow_host_code: run the plugin library that the folder brings (in the plan or beside it) instead of the
            installed one. That is machine code: only for folders you trust.
        allow_arch_mismatch: try a plan made for another GPU; TensorRT decides then.
        device: CUDA device index.
        cuda_graph: capture a shape's second run and replay it from then on; worth it for small models.
        runtime_cache: keep what TensorRT-RTX compiles beside the plan, so that the next start is faster.

    Raises:
        ArtifactError, UnsupportedError, SvdqError: see opening.open_engine; nothing was deserialized for the
            first two.
    """

    def __init__(
        self,
        engine_dir: str | Path,
        *,
        allow_host_code: bool = False,
        allow_arch_mismatch: bool = False,
        device: int = 0,
        cuda_graph: bool = False,
        runtime_cache: bool = True,
    ) -> None:
        folder = Path(engine_dir)
        if not torch.cuda.is_available():
            raise UnsupportedError("torch", "sees no CUDA GPU", "a CUDA build of torch and a GPU",
                                   "Install torch with CUDA.")  # fmt: skip
        self.device = torch.device("cuda", device)
        self.cuda_graph = cuda_graph
        with torch.cuda.device(self.device):
            torch.cuda.current_stream().synchronize()  # makes the CUDA context that TensorRT will use
            opened = open_engine(folder, allow_host_code=allow_host_code, allow_arch_mismatch=allow_arch_mismatch,
                                 device=device)  # fmt: skip
            self.manifest = opened.manifest
            self._trt, self._engine, self._logger = opened.backend.module, opened.engine, opened.logger
            inputs = input_profiles(self._trt, self._engine)
            self.lora = open_slots(folder, self.manifest, self.device)
            check_inputs_match(self.lora, [p.name for p in inputs])
            filled = self.lora.views if self.lora else {}
            self.inputs: list[TensorProfile] = [p for p in inputs if p.name not in filled]
            self.output_names = output_names(self._trt, self._engine)
            self._stream = torch.cuda.Stream()
            path = cache_path(folder, torch.cuda.get_device_name(), opened.backend.version)
            self._context, self._cache = self._make_context(path if runtime_cache else None)
            self.compiled = self._cache is None or not self._cache.hit
            self._buffers = self._allocate()
        self._shapes: Shapes = {}
        self._warm = False
        self._graph: torch.cuda.CUDAGraph | None = None

    def run(self, inputs: Mapping[str, torch.Tensor | np.ndarray]) -> dict[str, Any]:
        """Run once. All numpy in gives numpy out; otherwise CUDA tensors.

        CUDA tensors returned are the session's own memory: the next run overwrites them, so clone what must stay.

        Raises:
            ShapeError: an input that is missing, unknown, of another dtype, or outside the profile.
            SvdqError: TensorRT or the plugin failed; carries its message.
        """
        tensors = {name: as_tensor(value) for name, value in check_inputs(self.inputs, inputs).items()}
        caller = torch.cuda.current_stream(self.device)
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            self._stream.wait_stream(caller)
            self._set_shapes({name: tuple(t.shape) for name, t in tensors.items()})
            for name, tensor in tensors.items():
                self._view(name).copy_(tensor, non_blocking=True)
                if tensor.is_cuda:
                    tensor.record_stream(self._stream)  # its memory must not be reused before the copy
            self._enqueue()
        caller.wait_stream(self._stream)
        outputs = {name: self._view(name) for name in self.output_names}
        if any(isinstance(value, torch.Tensor) for value in inputs.values()):
            return outputs
        return {name: as_array(value) for name, value in outputs.items()}

    __call__ = run

    def prepare_lora(self, loras: Loras, *, allow_partial: bool = False) -> LoraSet:
        """Read LoRA files and lay them out on the GPU, for `set_lora`; see LoraSlots.prepare."""
        with torch.cuda.device(self.device):
            return require_slots(self.lora).prepare(loras, allow_partial)

    def set_lora(self, loras: Loras | LoraSet, strength: float = 1.0, *, allow_partial: bool = False) -> None:
        """Swap LoRAs in an engine built with --lora-slots: the next run has them; None takes them out.

        Takes no rebuild and no capture; CUDA graphs stay valid. Between two steps of a pipeline give it what
        `prepare_lora` returned: then the host does not wait and nothing is read.

        Args:
            loras: a file, (file, strength) pairs, or a prepared set. strength: multiplies each file's own.

        Raises:
            UnsupportedError: an engine without slots. ArtifactError, ShapeError, RangeError: the LoRA does not fit;
                what was in stays in.
        """
        slots = require_slots(self.lora)
        prepared = loras if isinstance(loras, LoraSet) else self.prepare_lora(loras, allow_partial=allow_partial)
        with torch.cuda.device(self.device), torch.cuda.stream(self._stream):
            slots.fill(prepared, strength)

    def close(self) -> None:
        """Free the engine and its memory; also done by ``with`` and by garbage collection."""
        self._stream.synchronize()
        self._graph = self._context = self._engine = self.lora = None
        self._buffers = {}

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # ---- inside ------------------------------------------------------------------------------------------------

    def _make_context(self, path: Path | None) -> tuple[Any, RuntimeCache | None]:
        cache = None
        if hasattr(self._trt, "IRuntimeCache"):  # TensorRT-RTX
            config = self._engine.create_runtime_config()
            # Eager: a new shape waits for its own kernels instead of first running on slower ones.
            config.dynamic_shapes_kernel_specialization_strategy = (
                self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
            if path is not None:
                cache = RuntimeCache(config, path)
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context()
        if context is None:
            raise SvdqError("engine", str(self._logger.errors) or "no execution context", "enough GPU memory")
        return context, cache

    def _allocate(self) -> dict[str, torch.Tensor]:
        """One flat buffer per input and output, large enough for the whole profile; addresses never change."""
        buffers = {}
        largest = {p.name: p.max for p in self.inputs}
        self._apply(largest)
        for name in (*largest, *self.output_names):
            shape = largest.get(name) or tuple(self._context.get_tensor_shape(name))
            dtype = getattr(torch, trt_dtype_name(self._engine.get_tensor_dtype(name)))
            buffers[name] = torch.zeros(max(1, math.prod(shape)), dtype=dtype, device=self.device)
            self._context.set_tensor_address(name, buffers[name].data_ptr())
        for name, view in (self.lora.views if self.lora else {}).items():
            self._context.set_tensor_address(name, view.data_ptr())
        self._stream.wait_stream(torch.cuda.current_stream())
        return buffers

    def _view(self, name: str) -> torch.Tensor:
        shape = self._shapes.get(name) or tuple(self._context.get_tensor_shape(name))
        return self._buffers[name][: math.prod(shape)].view(shape)

    def _set_shapes(self, shapes: Shapes) -> None:
        if shapes == self._shapes:
            return
        self._graph, self._warm, self._shapes = None, False, {}
        self._apply(shapes)
        self._shapes = shapes

    def _apply(self, shapes: Shapes) -> None:
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                self._fail(f"input '{name}'", f"shape {list(shape)}")
        try:  # sizes that contradict each other, such as two batches
            unknown = self._context.infer_shapes()
        except RuntimeError:  # how the bindings say -1
            unknown = ["inputs"]
        if unknown:
            self._fail("inputs", "shapes " + ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()))

    def _enqueue(self) -> None:
        if self._graph is not None:
            self._graph.replay()
        elif self.cuda_graph and self._warm:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self._stream, capture_error_mode="thread_local"):
                self._execute()
            self._graph = graph
            graph.replay()
        else:
            self._execute()
            if not self._warm and self._cache is not None:
                self._cache.save()
            self._warm = True

    def _execute(self) -> None:
        self._logger.errors.clear()
        if not self._context.execute_async_v3(self._stream.cuda_stream):
            self._fail("engine", "the run failed")

    def _fail(self, where: str, got: str) -> None:
        said = str(self._logger.errors)
        raise SvdqError(where, f"{got}{': ' + said if said else ''}", "a run that TensorRT accepts")
