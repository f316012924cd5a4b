"""The class that Triton's Python backend runs: an engine folder run by ``Session`` or ``OnnxSession``.

Every instance is a process of its own, with its own engine, and gets one batch of requests at a time: so a
session need not be thread-safe. Whatever goes wrong with a request becomes that request's error; the
process continues with the next one.

The runtime is the config's parameter ``svdq_trt_runtime``. There is no fallback: where that runtime
cannot open the engine, the model does not load, and Triton says why.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import triton_python_backend_utils as pb  # exists only in Triton's stub process

from svdq_trt.artifact import manifest as manifests
from svdq_trt.base.errors import ArtifactError, RangeError, ShapeError, SvdqError, UsageError
from svdq_trt.runtime.shapes import check_inputs
from svdq_trt.serve.batching import batch_of, divided, grouped, key_of, merged, one_for_all
from svdq_trt.serve.config import CUDA_GRAPHS, LORAS, RUNTIME, batch_range, shared_inputs
from svdq_trt.serve.dlpack import from_triton, to_triton

if TYPE_CHECKING:
    import numpy as np

    from svdq_trt.runtime.lora import LoraSet
    from svdq_trt.runtime.onnx_session import OnnxSession
    from svdq_trt.runtime.session import Session

#: what a client can do about: Triton's INVALID_ARG
_MISTAKES = (ShapeError, UsageError, RangeError)


@dataclass(frozen=True)
class _Request:
    """A request that may run.

    Attributes:
        inputs: what the session takes. batch: images, 1 for a model without a batch axis.
        lora: (name, strength) of the LoRA that it wants; ("", 1) for none.
    """

    inputs: dict[str, np.ndarray]
    batch: int
    lora: tuple[str, float]


class TritonPythonModel:
    """One instance. Triton calls `initialize` once, then `execute`, then `finalize`, never two at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the engine in the version folder.

        Raises:
            SvdqError: it does not open; Triton then reports the model as failed, with this text.
        """
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        given = {key: value["string_value"] for key, value in config.get("parameters", {}).items()}
        copies = sum(group["count"] for group in config["instance_group"])
        self._runner = _open(given, folder, int(args["model_instance_device_id"]), copies)
        assert self._runner.manifest is not None  # of an engine folder
        self._has_batch = batch_range(self._runner.manifest) is not None
        self._shared = shared_inputs(self._runner.manifest)
        self._limit: int = config["max_batch_size"]  # 0: requests are not merged
        self._loras: dict[str, LoraSet] = {
            name: self._runner.prepare_lora([(folder / file, strength)])
            for name, (file, strength) in json.loads(given.get(LORAS, "{}")).items()
        }
        if self._loras:
            self._loras[""] = self._runner.prepare_lora(())
        self._lora: tuple[str, float] = ("", 1.0)  # what is swapped in
        pb.Logger.log_info(f"{args['model_instance_name']}: {folder} open in {given[RUNTIME]}")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the requests; returns one response per request, in order."""
        responses: list[Any] = [None] * len(requests)
        good: dict[int, _Request] = {}
        for index, request in enumerate(requests):
            try:
                good[index] = self._read(request)
            except Exception as error:
                responses[index] = _refused(error)
        for group in self._groups(good):
            answers = self._run([good[place] for place in group])
            for place, answer in zip(group, answers, strict=True):
                responses[place] = answer
        return responses

    def finalize(self) -> None:
        """Free the engine."""
        self._runner.close()

    def _read(self, request: Any) -> _Request:
        """Read the request's tensors, checked against the profile before anything runs."""
        lora = self._wanted_lora(json.loads(request.parameters() or "{}"))
        given = {tensor.name(): from_triton(tensor) for tensor in request.inputs()}
        batch = 1
        if self._limit:  # then every input has a batch axis
            batch = batch_of(given)
            given |= {name: one_for_all(name, given[name]) for name in self._shared & given.keys()}
        inputs: dict[str, np.ndarray] = check_inputs(self._runner.inputs, given)
        if self._has_batch:
            batch = batch_of(inputs, self._shared)
        return _Request(inputs, batch, lora)

    def _wanted_lora(self, parameters: dict[str, Any]) -> tuple[str, float]:
        """The parameter ``lora`` of a request: NAME or NAME:STRENGTH."""
        text = parameters.get("lora", "")
        name, _, strength = str(text).partition(":")
        if name and name not in self._loras:
            known = ", ".join(filter(None, self._loras))
            known = f"one of {known}" if known else "none, as the model is served without LoRAs"
            raise UsageError("request parameter 'lora'", repr(name), known)
        try:
            return name, float(strength or 1)
        except ValueError:
            raise UsageError("request parameter 'lora'", repr(text), "NAME or NAME:STRENGTH") from None

    def _groups(self, good: dict[int, _Request]) -> list[list[int]]:
        """Places of requests that run together."""
        places = list(good)
        if not self._limit:
            return [[place] for place in places]
        keys: list[Hashable] = [(one.lora, key_of(one.inputs, self._shared)) for one in good.values()]
        return [[places[i] for i in group] for group in grouped(keys, [r.batch for r in good.values()], self._limit)]

    def _run(self, group: list[_Request]) -> list[Any]:
        try:
            self._swap(group[0].lora)
            outputs = self._runner.run(merged([one.inputs for one in group], self._shared))
            parts = [outputs] if len(group) == 1 else divided(outputs, [one.batch for one in group])
            return [pb.InferenceResponse([to_triton(pb.Tensor, name, part[name]) for name in part]) for part in parts]
        except Exception as error:
            return [_refused(error) for _ in group]

    def _swap(self, lora: tuple[str, float]) -> None:
        if lora != self._lora:
            name, strength = lora
            self._runner.set_lora(self._loras[name], strength)
            self._lora = lora


def _open(given: dict[str, str], folder: Path, device: int, copies: int) -> Session | OnnxSession:
    """Open the session that the config's parameters name."""
    runtime = given.get(RUNTIME, "")
    if runtime == "session":
        from svdq_trt.runtime.session import Session

        memory = "torch" if manifests.read(folder).lora_slots else "auto"  # pycuda fills no slots
        return Session(folder, device=device, cuda_graph=CUDA_GRAPHS in given, memory=memory)
    if runtime == "onnxruntime":
        from svdq_trt.runtime.onnx_session import OnnxSession

        threads = max(1, len(os.sched_getaffinity(0)) // copies)
        return OnnxSession(folder, device="cpu", threads=threads)
    raise ArtifactError(
        f"config.pbtxt: {RUNTIME}",
        repr(runtime),
        "session or onnxruntime",
        "Write the repository again: svdq-trt triton.",
    )


def _refused(error: Exception) -> Any:
    """An error response: INVALID_ARG for the caller's mistakes; ours leave a traceback in the server's log."""
    if isinstance(error, _MISTAKES):
        reply = pb.TritonError(str(error), pb.TritonError.INVALID_ARG)
    elif isinstance(error, SvdqError):
        reply = pb.TritonError(str(error), pb.TritonError.INTERNAL)
    else:
        pb.Logger.log_error("".join(traceback.format_exception(error)))
        reply = pb.TritonError(f"{type(error).__name__}: {error}", pb.TritonError.INTERNAL)
    return pb.InferenceResponse(error=reply)
