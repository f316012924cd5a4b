"""``Session``: an engine folder that runs on torch tensors or numpy arrays.

    session = Session("engines/sdxl-sm_89")
    noise = session.run({"sample": latent, "timestep": t, ...})["out_sample"]

Streams: a session works on its own stream, after what the caller's current torch stream holds at the call; the
caller's stream then waits for it. So torch code before and after needs no synchronization, and the host never waits
unless numpy arrays are asked for.
"""

from __future__ import annotations

import functools
import time
from collections.abc import Container, Hashable, Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from svdq_trt.artifact.held import Held
from svdq_trt.artifact.manifest import TensorProfile
from svdq_trt.base.errors import SvdqError, UnsupportedError
from svdq_trt.base.extras import required_by
from svdq_trt.base.side_by_side import SideBySide
from svdq_trt.contract.step_cache import FIRST, LAST, RESIDUAL
from svdq_trt.engine.gpu import gpu_name, on_gpu
from svdq_trt.engine.layer_times import profiled
from svdq_trt.runtime.activations import SharedActivations
from svdq_trt.runtime.cache import cache_path
from svdq_trt.runtime.context import Context, make_context
from svdq_trt.runtime.device import DeviceMemory, choose_memory, open_device
from svdq_trt.runtime.opening import Opened, open_engine
from svdq_trt.runtime.part import Part
from svdq_trt.runtime.shapes import Shapes, check_inputs, input_profiles, is_tensor
from svdq_trt.runtime.step_cache import StepCache, StepCached

if TYPE_CHECKING:
    from svdq_trt.runtime.lora import Loras, LoraSet, LoraSlots


class Session(StepCached):
    """One engine, one stream. Not thread-safe: one thread at a time.

    Attributes:
        manifest: the engine's manifest. model: what get_model knows its model by. lora: its LoRA slots; None without.
        inputs: what `run` takes, with the ranges of every dimension. output_names: what it returns.
        device: "cuda:0". memory: what holds device memory, "torch" or "pycuda".
        parts: its one plan, or with --step-cache the plans of head, tail and end, in the order in which they run.
        step_cache: with --step-cache, at which change of the first block a run skips the others; see there.
        compiled: False when the runtime cache spared the compilation at start. kept: whether the next start is spared
            it: what was compiled lies beside the plan.
        seconds: time of opening, by part: check (digests), load (plan and plugin), context (TensorRT-RTX compiles).

    Args:
        engine_dir: folder with manifest.json and model.plan, or the plans of its pieces.
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
        activations: memory for them that sessions share, see SharedActivations. None: the session's own, which the
            pieces of an engine with --step-cache share.

    Raises:
        UsageError: a weight_budget below 0; activations of sessions on another GPU.
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
        activations: SharedActivations | None = None,
    ) -> None:
        folder = Path(engine_dir)
        if activations is not None:
            activations.join(device)
        self.memory = choose_memory(memory)
        self.device, self.cuda_graph = f"cuda:{device}", cuda_graph
        self._given: Shapes = {}  # of the inputs
        self._shapes: Shapes = {}  # of all tensors
        opened = open_engine(
            folder,
            allow_host_code=allow_host_code,
            allow_arch_mismatch=allow_arch_mismatch,
            device=device,
            weight_budget=weight_budget,
        )
        self.manifest, self.seconds = opened.manifest, dict(opened.seconds)
        self.model = self.manifest.source
        self._trt, self._logger = opened.backend.module, opened.logger
        self._check_slots()
        started = time.perf_counter()
        shared = activations or (SharedActivations() if len(opened.engines) > 1 else None)
        contexts = self._make_contexts(opened, device, runtime_cache, own_memory=shared is None)
        self.seconds["context"] = time.perf_counter() - started
        self.compiled = any(made.compiled for made in contexts)
        self.kept = all(made.kept for made in contexts)
        self._memory: DeviceMemory = open_device(self.memory, device)  # here, as importing torch takes seconds
        with self._memory.running():
            self.parts = [Part(self._trt, made, self._logger, self._memory, shared) for made in contexts]
            self.lora = self._open_slots(folder)
            filled = self.lora.views if self.lora else {}
            self.inputs: list[TensorProfile] = self._input_profiles(filled)
            self.output_names = self.parts[-1].outputs
            self._buffers = self._allocate(filled)
        if len(self.parts) > 1:
            self._steps = StepCache()

    def run(self, inputs: Mapping[str, Any], cache: Hashable = "") -> dict[str, Any]:
        """Run once. Returns numpy arrays if all inputs are, otherwise CUDA tensors.

        Args:
            inputs: by name.
            cache: with `step_cache`: to which steps this one is compared. Calls that belong to one step, as guidance in
                two calls, need a name each.

        Returned CUDA tensors are the session's own memory: the next run overwrites them, so clone what must stay.

        Raises:
            ShapeError: an input that is missing, unknown, or unfit, see shapes.check_inputs.
            SvdqError: TensorRT or the plugin failed; carries its message.
        """
        if not self.parts:
            raise SvdqError("Session.run", "a closed session", "an open one")
        values = check_inputs(self.inputs, inputs)
        self._logger.errors.clear()
        with self._memory.running():
            self._set_shapes({name: tuple(value.shape) for name, value in values.items()})
            for name, value in values.items():
                self._memory.write(self._buffers[name], value)
            self._enqueue(cache)
        tensors = any(is_tensor(value) for value in inputs.values())
        give = self._memory.tensor if tensors else self._memory.array
        return {name: give(self._buffers[name], self._shapes[name]) for name in self.output_names}

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
            with ExitStack() as profiles:
                times = [profiles.enter_context(profiled(self._trt, part.context)) for part in self.parts]
                for _ in range(repeat):
                    self.run(inputs)
                    self._memory.synchronize()
        finally:
            self.cuda_graph = graph
        return {layer: ms / repeat for one in times for layer, ms in one.items()}

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
        self.reset()

    def close(self) -> None:
        """Free the engine and its memory; also done by ``with`` and by garbage collection."""
        if not self.parts:
            return
        self._memory.synchronize()
        with self._memory.running():
            self.lora, self.parts, self._buffers = None, [], {}
            self.reset()

    def __enter__(self) -> Session:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    # ---- inside ------------------------------------------------------------------------------------------------

    def _check_slots(self) -> None:
        """Raise UnsupportedError for an engine with LoRA slots, if memory is not torch's."""
        if self.manifest.lora_slots is not None and self.memory != "torch":
            raise UnsupportedError(
                "LoRA slots", f"memory='{self.memory}'", "memory='torch'", "Import torch first, or pass memory='torch'."
            )

    def _open_slots(self, folder: Path) -> LoraSlots | None:
        if self.manifest.lora_slots is None:
            return None
        with required_by("LoRA slots"):
            from svdq_trt.runtime.lora import check_inputs_match, open_slots
        slots = open_slots(folder, self.manifest.lora_slots, self.device)
        check_inputs_match(slots, [name for part in self.parts for name in part.inputs])
        return slots

    def _cached_steps(self) -> StepCache:
        steps = super()._cached_steps()
        if self.memory != "torch":
            fix = "Import torch first, or pass memory='torch'."
            raise UnsupportedError("step_cache", f"memory='{self.memory}'", "memory='torch'", fix)
        return steps

    def _make_contexts(self, opened: Opened, device: int, runtime_cache: bool, own_memory: bool) -> list[Context]:
        """Of all plans, side by side, as TensorRT-RTX's compiler leaves most of a machine's cores idle."""

        def make(plan: Held, engine: Any) -> Context:
            path = cache_path(opened.folder, gpu_name(device), opened.backend.version, plan.file)
            cache = (path, plan.sha256 or "") if runtime_cache else None
            with on_gpu(device):  # this thread
                return make_context(self._trt, engine, self._logger, cache, own_memory)

        pairs = zip(opened.plans, opened.engines, strict=True)
        calls = {plan.file: functools.partial(make, plan, engine) for plan, engine in pairs}
        with SideBySide(calls, discard=lambda made: None) as making:
            return list(making.results().values())

    def _input_profiles(self, filled: Container[str]) -> list[TensorProfile]:
        """What `run` takes: the inputs that are neither filled otherwise nor another part's outputs."""
        axes = {tensor.name: tensor.axes for tensor in self.manifest.inputs}
        made = {name for part in self.parts for name in part.outputs}
        read = [profile for part in self.parts for profile in input_profiles(self._trt, part.engine, axes, filled)]
        return list({profile.name: profile for profile in read if profile.name not in made}.values())

    def _allocate(self, filled: Mapping[str, Any]) -> dict[str, Any]:
        """One flat buffer per input and output, large enough for the whole profile; addresses never change."""
        buffers: dict[str, Any] = {}
        shapes = {p.name: p.max for p in self.inputs}
        for part in self.parts:
            part.bind(shapes, buffers, filled)
        return buffers

    def _set_shapes(self, given: Shapes) -> None:
        """Set the shapes of the inputs, from which all others follow."""
        if given == self._given:
            return
        self._given, shapes = {}, dict(given)
        for part in self.parts:
            part.set_shapes(shapes)
        self._given, self._shapes = given, shapes

    def _enqueue(self, cache: Hashable) -> None:
        if self._steps is None or not self._steps.threshold:
            for part in self.parts:
                part.run(self.cuda_graph)
            return
        head, tail, end = self.parts
        head.run(self.cuda_graph)
        residual, x1, x2 = (self._memory.tensor(self._buffers[n], self._shapes[n]) for n in (RESIDUAL, FIRST, LAST))

        def computed() -> Any:
            tail.run(self.cuda_graph)
            return x2

        found = self._steps.x2(cache, self._given, residual, x1, computed)
        if found is not x2:
            x2.copy_(found)
        end.run(self.cuda_graph)
