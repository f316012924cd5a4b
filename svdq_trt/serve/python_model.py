"""The class that Triton's Python backend runs for a denoiser: an engine folder run by ``Session`` or ``OnnxSession``.

The runtime is the config's parameter ``svdq_trt_runtime``. There is no fallback: where that runtime
cannot open the engine, the model does not load, and Triton says why.
"""

from __future__ import annotations

import os
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from svdq_trt.artifact import manifest as manifests
from svdq_trt.runtime.shapes import check_inputs
from svdq_trt.serve.backend import Instance, Lora, Loras, Served
from svdq_trt.serve.batching import batch_of, divided, key_of, merged, one_for_all
from svdq_trt.serve.config import CUDA_GRAPHS, batch_range, shared_inputs
from svdq_trt.serve.dlpack import from_triton

if TYPE_CHECKING:
    import numpy as np

    from svdq_trt.runtime.onnx_session import OnnxSession
    from svdq_trt.runtime.session import Session


@dataclass(frozen=True)
class _Request:
    """A request that may run.

    Attributes:
        inputs: what the session takes. batch: images, 1 for a model without a batch axis.
        lora: the one that it wants.
    """

    inputs: dict[str, np.ndarray]
    batch: int
    lora: Lora


class TritonPythonModel(Served[_Request]):
    """One instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the engine in the version folder.

        Raises:
            SvdqError: it does not open; Triton then reports the model as failed, with this text.
        """
        here = Instance.of(args)
        self._runner = _open(here)
        assert self._runner.manifest is not None  # of an engine folder
        self._has_batch = batch_range(self._runner.manifest) is not None
        self._shared = shared_inputs(self._runner.manifest)
        self._limit = here.limit
        self._loras = Loras(self._runner, here)
        here.log_open()

    def finalize(self) -> None:
        """Free the engine."""
        self._runner.close()

    def _read(self, request: Any) -> _Request:
        lora = self._loras.wanted(request)
        given = {tensor.name(): from_triton(tensor) for tensor in request.inputs()}
        batch = 1
        if self._limit:  # then every input has a batch axis
            batch = batch_of(given)
            given |= {name: one_for_all(name, given[name]) for name in self._shared & given.keys()}
        inputs: dict[str, np.ndarray] = check_inputs(self._runner.inputs, given)
        if self._has_batch:
            batch = batch_of(inputs, self._shared)
        return _Request(inputs, batch, lora)

    def _key(self, read: _Request) -> tuple[Hashable, int]:
        return (read.lora, key_of(read.inputs, self._shared)), read.batch

    def _most(self) -> int:
        return self._limit

    def _run(self, group: list[_Request]) -> list[dict[str, np.ndarray]]:
        self._loras.swap_in(group[0].lora)
        outputs = self._runner.run(merged([one.inputs for one in group], self._shared))
        return [outputs] if len(group) == 1 else divided(outputs, [one.batch for one in group])


def _open(here: Instance) -> Session | OnnxSession:
    """Open the session that the config's parameters name."""
    if here.runtime({"session": "tensorrt", "onnxruntime": "onnx"}) == "tensorrt":
        from svdq_trt.runtime.session import Session

        memory = "torch" if manifests.read(here.folder).lora_slots else "auto"  # pycuda fills no slots
        return Session(here.folder, device=here.device, cuda_graph=CUDA_GRAPHS in here.parameters, memory=memory)
    from svdq_trt.runtime.onnx_session import OnnxSession

    threads = max(1, len(os.sched_getaffinity(0)) // here.copies)
    return OnnxSession(here.folder, device="cpu", threads=threads)
