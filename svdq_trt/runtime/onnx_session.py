"""``OnnxSession``: the ONNX file of an engine folder in ONNX Runtime, with the interface of ``Session``.

    session = OnnxSession("engines/sdxl-sm_89")
    noise = session.run({"sample": latent, "timestep": t, ...})["out_sample"]

For machines without a GPU, and for comparisons. It is slow: the svdq nodes run as the function bodies that travel in
the file, which dequantize and multiply in standard operators. No machine code of ours runs, no plan is needed.
"""

from __future__ import annotations

import time
from collections.abc import Hashable, Mapping
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from svdq_trt.artifact import manifest as manifests
from svdq_trt.artifact.manifest import Manifest, TensorProfile
from svdq_trt.base.errors import SvdqError, UnsupportedError
from svdq_trt.base.extras import required_by
from svdq_trt.contract.step_cache import FIRST, LAST, RESIDUAL
from svdq_trt.runtime.onnx_graph import read_graph
from svdq_trt.runtime.shapes import as_array, as_tensor, check_inputs, is_tensor, numpy_dtype
from svdq_trt.runtime.step_cache import StepCache, StepCached

if TYPE_CHECKING:
    from svdq_trt.runtime.lora import Loras, LoraSet, LoraSlots

_DATA_FOLDER = "session.model_external_initializers_file_folder_path"
_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


class OnnxSession(StepCached):
    """One ONNX file in ONNX Runtime, or its pieces. Several threads may call `run` at once, without a `step_cache`.

    A bfloat16 model runs as its float32 twin, as ONNX Runtime's CPU has no bfloat16 arithmetic. The twin is made in
    memory at each opening, from the file as it is then. Inputs and outputs keep the model's dtype.

    Attributes:
        manifest: the engine's manifest; None for an ONNX file by itself. model: its model's name; "" without.
        inputs: what `run` takes, with the ranges of every dimension. output_names: what it returns.
        provider: what ONNX Runtime runs on, "CPUExecutionProvider" or "CUDAExecutionProvider".
        seconds: time of opening, by part: check (digests), load (ONNX Runtime).
        path: the ONNX file. lora: the graph's LoRA slots; None without. step_cache: as Session's.

    Args:
        source: an engine folder (the plan may be missing), or an .onnx file.
        device: "cpu", "cuda" (needs onnxruntime-gpu), or "auto": cuda where this ONNX Runtime has it.
        threads: inside one operator; None leaves it to ONNX Runtime.

    Raises:
        ArtifactError: no manifest, another digest than the manifest's, not an ONNX file.
        UnsupportedError: this ONNX Runtime has no such device. SvdqError: ONNX Runtime refuses the file.
    """

    def __init__(self, source: str | Path, *, device: str = "auto", threads: int | None = None) -> None:
        import onnxruntime as ort

        source, started = Path(source), time.perf_counter()
        self.manifest: Manifest | None = None
        file, pieces = source, [source]
        if source.suffix != ".onnx":
            self.manifest = manifests.verify(source, parts=("onnx",))
            file = source / Path(self.manifest.onnx.file).name
            pieces = [source / Path(piece.file).name for piece in self.manifest.onnx.pieces] or [file]
        checked = time.perf_counter()
        self.model = self.manifest.source if self.manifest else ""
        self.provider = _provider(ort, device)
        graph = read_graph(file)
        self.inputs: list[TensorProfile] = [t.profile for t in self.manifest.inputs] if self.manifest else graph.inputs
        axes = {p.name: p.axes for p in graph.inputs}  # for manifests of earlier releases
        self.inputs = [p if p.axes else replace(p, axes=axes.get(p.name, ())) for p in self.inputs]
        self.output_names = list(graph.outputs)
        self._output_dtypes = graph.outputs
        self.path = file
        options = ort.SessionOptions()
        options.log_severity_level = 3  # errors
        if threads is not None:
            options.intra_op_num_threads = threads
        if graph.has_bfloat16:
            options.add_session_config_entry(_DATA_FOLDER, str(file.parent.resolve()))
        try:
            models = [_float32_twin(piece) if graph.has_bfloat16 else str(piece) for piece in pieces]
            self._parts = [ort.InferenceSession(model, options, providers=[self.provider]) for model in models]
        except Exception as error:
            raise _as_svdq_error(error, self.path) from error
        self.seconds = {"check": checked - started, "load": time.perf_counter() - checked}
        self.lora = self._open_slots(source, [p.name for p in graph.inputs])
        if len(pieces) > 1:
            self._steps = StepCache()

    def run(self, inputs: Mapping[str, Any], cache: Hashable = "") -> dict[str, Any]:
        """Run once. Returns numpy arrays if all inputs are, otherwise torch tensors on the CPU; `cache` as Session's.

        Raises:
            ShapeError: an input that is missing, unknown, or unfit, see shapes.check_inputs.
            SvdqError: ONNX Runtime failed; carries its message.
        """
        if not self._parts:
            raise SvdqError(str(self.path), "a closed session", "an open one")
        checked = check_inputs(self.inputs, inputs)
        given = checked if self.lora is None else {**checked, **self.lora.views}
        values = {name: as_array(value) for name, value in given.items()}
        try:
            self._run(values, cache)
        except Exception as error:
            raise _as_svdq_error(error, self.path) from error
        outputs = {
            name: values[name].astype(numpy_dtype(dtype), copy=False) for name, dtype in self._output_dtypes.items()
        }
        if any(is_tensor(value) for value in inputs.values()):
            return {name: as_tensor(value) for name, value in outputs.items()}
        return outputs

    __call__ = run

    def prepare_lora(self, loras: Loras, *, allow_partial: bool = False) -> LoraSet:
        """Read LoRA files and lay them out, for `set_lora`."""
        from svdq_trt.runtime.lora import require_slots

        return require_slots(self.lora).prepare(loras, allow_partial)

    def set_lora(self, loras: Loras | LoraSet, strength: float = 1.0, *, allow_partial: bool = False) -> None:
        """Swap LoRAs in, as Session.set_lora does; not while another thread runs."""
        from svdq_trt.runtime.lora import LoraSet, require_slots

        prepared = loras if isinstance(loras, LoraSet) else self.prepare_lora(loras, allow_partial=allow_partial)
        require_slots(self.lora).fill(prepared, strength)
        self.reset()

    def close(self) -> None:
        """Free the model's memory."""
        self._parts = []
        self.reset()

    def __enter__(self) -> OnnxSession:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def _open_slots(self, folder: Path, inputs: list[str]) -> LoraSlots | None:
        if self.manifest is None or self.manifest.lora_slots is None:
            return None
        with required_by("LoRA slots"):
            from svdq_trt.runtime.lora import check_inputs_match, open_slots
        manifests.verify(folder, parts=("lora_slots",))
        slots = open_slots(folder, self.manifest.lora_slots)
        check_inputs_match(slots, inputs)
        return slots

    def _run(self, values: dict[str, np.ndarray], cache: Hashable) -> None:
        """Run the parts one after the other, adding to `values` what they make."""
        if self._steps is None or not self._steps.threshold:
            for part in self._parts:
                values |= _outputs(part, values)
            return
        head, tail, end = self._parts
        shapes = {p.name: values[p.name].shape for p in self.inputs}
        values |= _outputs(head, values)
        values[LAST] = self._steps.x2(
            cache, shapes, values[RESIDUAL], values[FIRST], lambda: _outputs(tail, values)[LAST]
        )
        values |= _outputs(end, values)


def _outputs(part: Any, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """What an InferenceSession makes of those values that it takes."""
    feed = {i.name: _fed(i.type, values[i.name]) for i in part.get_inputs()}
    names = [output.name for output in part.get_outputs()]
    return {name: np.asarray(value) for name, value in zip(names, part.run(names, feed), strict=True)}


def _fed(kind: str, value: np.ndarray) -> np.ndarray:
    return value.astype(np.float32, copy=False) if kind == "tensor(float)" else value


def _provider(ort: Any, device: str) -> str:
    have = ort.get_available_providers()
    if device == "auto":
        device = "cuda" if _PROVIDERS["cuda"] in have else "cpu"
    if device not in _PROVIDERS:
        raise UnsupportedError("device", f"'{device}'", f"auto, {', '.join(_PROVIDERS)}")
    if _PROVIDERS[device] not in have:
        raise UnsupportedError(
            "onnxruntime",
            f"no {_PROVIDERS[device]}",
            "a build that has it",
            "pip uninstall onnxruntime && pip install onnxruntime-gpu",
        )
    return _PROVIDERS[device]


def _float32_twin(file: Path) -> bytes:
    """The twin of `file`, which reads the same data: _DATA_FOLDER tells ONNX Runtime where."""
    from svdq_export.twin import float32_twin

    twin: bytes = float32_twin(file)
    return twin


def _as_svdq_error(error: Exception, path: Path) -> Exception:
    """SvdqError for an exception of ONNX Runtime's own, which have no common base; any other as it is."""
    if type(error).__module__.startswith("onnxruntime"):
        return SvdqError(str(path), " ".join(str(error).split()), "a graph and inputs that ONNX Runtime runs")
    return error
