"""``Session``: an engine folder that runs on torch tensors or numpy arrays.

    session = Session("engines/sdxl-sm_89")
    noise = session.run({"sample": latent, "timestep": t, ...})["out_sample"]

Streams: a session works on its own stream, after what the caller's current torch stream holds at the call; the
caller's stream then waits for it. So torch code before and after needs no synchronization, and the host never waits
unless numpy arrays are asked for.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from svdq_trt.artifact.manifest import TensorProfile
from svdq_trt.base.errors import SvdqError, UnsupportedError, UsageError
from svdq_trt.base.extras import required_by
from svdq_trt.engine.layer_times import profiled
from svdq_trt.runtime.cache import RuntimeCache, cache_path
from svdq_trt.runtime.device import DeviceMemory, open_device
from svdq_trt.runtime.opening import open_engine
from svdq_trt.runtime.shapes import (
    check_inputs,
    input_names,
    input_profiles,
    is_tensor,
    output_names,
    trt_dtype_name,
)

if TYPE_CHECKING:
    from svdq_trt.runtime.lora import Loras, LoraSet, LoraSlots

Shapes = dict[str, tuple[int, ...]]


class Session:
    """One engine, one execution context, one stream. Not thread-safe: one thread at a time.

    Attributes:
        manifest: the engine's manifest. model: what get_model knows its model by. lora: its LoRA slots; None without.
        inputs: what `run` takes, with the ranges of every dimension. output_names: what it returns.
        device: "cuda:0". memory: what holds device memory, "torch" or "pycuda".
        compiled: False when the runtime cache spared the compilation at start.
        seconds: time of opening, by part: check (digests), load (plan and plugin), context (TensorRT-RTX compiles).

    Args:
        engine_dir: folder with manifest.json and model.plan.
        allow_host_code: run the plugin library that the folder brings (in the plan or beside it) instead of the
            installed one. That is machine code: only for folders that you trust.
        allow_arch_mismatch: try a plan made for another GPU; TensorRT decides then.
        device: CUDA device index.
        cuda_graph: capture a shape's second run and replay it from then on; worth it for small models. The attribute
            of that name may be changed between two runs.
        runtime_cache: keep what TensorRT-RTX compiles beside the plan, so that the next start is faster.
        memory: "torch", "pycuda" (numpy arrays only; the extra 'runtime'), or "auto": pycuda where it
            is installed and the process has not imported torch.
        weight_budget: most bytes of weights to keep in GPU memory; the others are read from host memory at every run.
            For engines built with --weight-streaming. None: all.

    Raises:
        UsageError: a weight_budget below 0.
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
        memory: str = "auto",
        weight_budget: int | None = None,
    ) -> None:
        folder = Path(engine_dir)
        if weight_budget is not None and weight_budget < 0:
            raise UsageError("weight_budget", f"{weight_budget} bytes", "0 or more")
        self._memory: DeviceMemory = open_device(memory, device)
        self.device, self.memory, self.cuda_graph = f"cuda:{device}", self._memory.kind, cuda_graph
        self._shapes: Shapes = {}
        self._warm = False
        self._replay: Callable[[], None] | None = None
        with self._memory.running():
            opened = open_engine(
                folder, allow_host_code=allow_host_code, allow_arch_mismatch=allow_arch_mismatch, device=device
            )
            self.manifest, self.seconds = opened.manifest, dict(opened.seconds)
            self.model = self.manifest.source
            self._trt, self._engine, self._logger = opened.backend.module, opened.engine, opened.logger
            if weight_budget is not None:
                self._set_weight_budget(weight_budget)
            self.lora = self._open_slots(folder)
            filled = self.lora.views if self.lora else {}
            axes = {tensor.name: tensor.axes for tensor in self.manifest.inputs}
            self.inputs: list[TensorProfile] = input_profiles(self._trt, self._engine, axes, filled)
            self.output_names = output_names(self._trt, self._engine)
            path = cache_path(folder, self._memory.name, opened.backend.version)
            started = time.perf_counter()
            self._context, self._cache = self._make_context(path if runtime_cache else None)
            self.seconds["context"] = time.perf_counter() - started
            self.compiled = self._cache is None or not self._cache.hit
            self._buffers = self._allocate()

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run once. Returns numpy arrays if all inputs are, otherwise CUDA tensors.

        Returned CUDA tensors are the session's own memory: the next run overwrites them, so clone what must stay.

        Raises:
            ShapeError: an input that is missing, unknown, or unfit, see shapes.check_inputs.
            SvdqError: TensorRT or the plugin failed; carries its message.
        """
        if self._context is None:
            raise SvdqError("Session.run", "a closed session", "an open one")
        values = check_inputs(self.inputs, inputs)
        self._logger.errors.clear()
        with self._memory.running():
            self._set_shapes({name: tuple(value.shape) for name, value in values.items()})
            for name, value in values.items():
                self._memory.write(self._buffers[name], value)
            self._enqueue()
        tensors = any(is_tensor(value) for value in inputs.values())
        give = self._memory.tensor if tensors else self._memory.array
        return {name: give(self._buffers[name], self._shape(name)) for name in self.output_names}

    __call__ = run

    def layer_times(self, inputs: Mapping[str, Any], repeat: int = 5) -> dict[str, float]:
        """Run `repeat` times without a CUDA graph; layer -> mean ms, in order of execution, as TensorRT reports it.

        Raises:
            ShapeError, SvdqError: as `run`.
        """
        graph, self.cuda_graph = self.cuda_graph, False
        try:
            self.run(inputs)
            self._memory.synchronize()
            with profiled(self._trt, self._context) as times:
                for _ in range(repeat):
                    self.run(inputs)
                    self._memory.synchronize()
        finally:
            self.cuda_graph = graph
        return {layer: ms / repeat for layer, ms in times.items()}

    def prepare_lora(self, loras: Loras, *, allow_partial: bool = False) -> LoraSet:
        """Read LoRA files and lay them out on the GPU, for `set_lora`; see LoraSlots.prepare."""
        from svdq_trt.runtime.lora import require_slots

        return require_slots(self.lora).prepare(loras, allow_partial)

    def set_lora(self, loras: Loras | LoraSet, strength: float = 1.0, *, allow_partial: bool = False) -> None:
        """Swap LoRAs in an engine built with --lora-slots: the next run has them; None takes them out.

        Needs no rebuild and no capture; CUDA graphs stay valid. Between two steps of a pipeline pass what
        `prepare_lora` returned: then the host does not wait and nothing is read.

        Args:
            loras: a file, (file, strength) pairs, or a prepared set. strength: multiplies each file's own strength.

        Raises:
            UnsupportedError: an engine without slots. ArtifactError, ShapeError, RangeError: the LoRA does not fit;
                the current set stays in.
        """
        from svdq_trt.runtime.lora import LoraSet, require_slots

        prepared = loras if isinstance(loras, LoraSet) else self.prepare_lora(loras, allow_partial=allow_partial)
        with self._memory.running():
            require_slots(self.lora).fill(prepared, strength)

    def close(self) -> None:
        """Free the engine and its memory; also done by ``with`` and by garbage collection."""
        if self._context is None:
            return
        self._memory.synchronize()
        with self._memory.running():
            self._replay = self._context = self._cache = self._engine = self.lora = None
            self._buffers = {}

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # ---- inside ------------------------------------------------------------------------------------------------

    def _open_slots(self, folder: Path) -> LoraSlots | None:
        if self.manifest.lora_slots is None:
            return None
        if self.memory != "torch":
            raise UnsupportedError(
                "LoRA slots", f"memory='{self.memory}'", "memory='torch'", "Import torch first, or pass memory='torch'."
            )
        with required_by("LoRA slots"):
            from svdq_trt.runtime.lora import check_inputs_match, open_slots
        slots = open_slots(folder, self.manifest.lora_slots, self.device)
        check_inputs_match(slots, input_names(self._trt, self._engine))
        return slots

    def _set_weight_budget(self, budget: int) -> None:
        """Set how many bytes of weights stay on the GPU; TensorRT takes it only before there is a context."""
        assert self.manifest.plan is not None  # it was opened
        if not self.manifest.plan.weight_streaming:
            raise UnsupportedError(
                "weight_budget",
                "an engine that was built without --weight-streaming",
                "one that was built with it",
                "Build it again with it, or leave weight_budget out.",
            )
        self._engine.weight_streaming_budget_v2 = min(budget, self._engine.streamable_weights_size)

    def _make_context(self, path: Path | None) -> tuple[Any, RuntimeCache | None]:
        cache = None
        if hasattr(self._trt, "IRuntimeCache"):  # TensorRT-RTX
            config = self._engine.create_runtime_config()
            # Eager: a new shape waits for its own kernels instead of first running on slower ones.
            config.dynamic_shapes_kernel_specialization_strategy = (
                self._trt.DynamicShapesKernelSpecializationStrategy.EAGER
            )
            if path is not None:
                assert self.manifest.plan is not None  # it was opened
                cache = RuntimeCache(config, path, self.manifest.plan.sha256)
            context = self._engine.create_execution_context(config)
        else:
            context = self._engine.create_execution_context()
        if context is None:
            raise SvdqError("engine", str(self._logger.errors) or "no execution context", "enough GPU memory")
        if cache is not None:  # most is compiled by now; a new shape adds to it
            cache.save()
        return context, cache

    def _allocate(self) -> dict[str, Any]:
        """One flat buffer per input and output, large enough for the whole profile; addresses never change."""
        buffers = {}
        largest = {p.name: p.max for p in self.inputs}
        self._apply(largest)
        for name in (*largest, *self.output_names):
            count = math.prod(largest.get(name) or self._shape(name))
            buffers[name] = self._memory.allocate(trt_dtype_name(self._engine.get_tensor_dtype(name)), max(1, count))
            self._context.set_tensor_address(name, self._memory.address(buffers[name]))
        for name, view in (self.lora.views if self.lora else {}).items():
            self._context.set_tensor_address(name, view.data_ptr())
        return buffers

    def _shape(self, name: str) -> tuple[int, ...]:
        return tuple(self._context.get_tensor_shape(name))

    def _set_shapes(self, shapes: Shapes) -> None:
        if shapes == self._shapes:
            return
        self._replay, self._warm, self._shapes = None, False, {}
        self._apply(shapes)
        self._shapes = shapes

    def _apply(self, shapes: Shapes) -> None:
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                self._fail(f"input '{name}'", f"shape {list(shape)}")
        try:  # sizes that contradict each other, such as two batches
            unknown = self._context.infer_shapes()
        except RuntimeError:  # the bindings' way to say -1
            unknown = ["inputs"]
        if unknown:
            self._fail("inputs", "shapes " + ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items()))

    def _enqueue(self) -> None:
        if self.cuda_graph and self._warm:
            self._replay = self._replay or self._memory.capture(self._execute)
            self._replay()
            return
        self._execute()
        if not self._warm and self._cache is not None:
            self._cache.save()
        self._warm = True

    def _execute(self) -> None:
        if not self._context.execute_async_v3(self._memory.stream):
            self._fail("engine", "the run failed")

    def _fail(self, where: str, got: str) -> None:
        said = str(self._logger.errors)
        raise SvdqError(where, f"{got}{': ' + said if said else ''}", "a run that TensorRT accepts")
