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
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import triton_python_backend_utils as pb  # exists only in Triton's stub process

from svdq_trt.base.errors import ArtifactError, ShapeError, SvdqError
from svdq_trt.runtime.shapes import as_array, as_tensor, check_inputs
from svdq_trt.serve.batching import batch_of, divided, grouped, merged
from svdq_trt.serve.config import batch_range

if TYPE_CHECKING:
    from svdq_trt.runtime import OnnxSession, Session


class TritonPythonModel:
    """One instance. Triton calls `initialize` once, then `execute`, then `finalize`, never two at a time."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the engine in the version folder.

        Raises:
            SvdqError: it does not open; Triton then reports the model as failed, with this text.
        """
        config = json.loads(args["model_config"])
        folder = Path(args["model_repository"]) / args["model_version"]
        runtime = config.get("parameters", {}).get("svdq_trt_runtime", {}).get("string_value", "")
        copies = sum(group["count"] for group in config["instance_group"])
        self._runner = _open(runtime, folder, int(args["model_instance_device_id"]), copies)
        assert self._runner.manifest is not None  # of an engine folder
        self._has_batch = batch_range(self._runner.manifest) is not None
        self._bfloat16 = {t["name"] for t in config["input"] if t["data_type"] == "TYPE_BF16"}
        self._limit: int = config["max_batch_size"]  # 0: requests are not merged
        pb.Logger.log_info(f"{args['model_instance_name']}: {folder} open in {runtime}")

    def execute(self, requests: list[Any]) -> list[Any]:
        """Run the requests; returns one response per request, in order."""
        responses: list[Any] = [None] * len(requests)
        good: dict[int, dict[str, np.ndarray]] = {}
        for index, request in enumerate(requests):
            try:
                good[index] = self._read(request)
            except Exception as error:
                responses[index] = _refused(error)
        places = list(good)
        if self._limit and len(good) > 1:
            groups = [[places[i] for i in group] for group in grouped(list(good.values()), self._limit)]
        else:
            groups = [[place] for place in places]
        for group in groups:
            answers = self._run([good[place] for place in group])
            for place, answer in zip(group, answers, strict=True):
                responses[place] = answer
        return responses

    def finalize(self) -> None:
        """Free the engine."""
        self._runner.close()

    def _read(self, request: Any) -> dict[str, np.ndarray]:
        """Read the request's tensors, checked against the profile before anything runs."""
        given = {t.name(): _bfloat16(t) if t.name() in self._bfloat16 else np.from_dlpack(t) for t in request.inputs()}
        inputs: dict[str, np.ndarray] = check_inputs(self._runner.inputs, given)
        if self._has_batch:
            batch_of(inputs)
        return inputs

    def _run(self, group: list[dict[str, np.ndarray]]) -> list[Any]:
        try:
            outputs = self._runner.run(merged(group))
            parts = [outputs] if len(group) == 1 else divided(outputs, [batch_of(inputs) for inputs in group])
            return [pb.InferenceResponse([_from_numpy(name, part[name]) for name in part]) for part in parts]
        except Exception as error:
            return [_refused(error) for _ in group]


def _open(runtime: str, folder: Path, device: int, copies: int) -> Session | OnnxSession:
    from svdq_trt.runtime import OnnxSession, Session

    if runtime == "session":
        return Session(folder, device=device)
    if runtime == "onnxruntime":
        threads = max(1, len(os.sched_getaffinity(0)) // copies)
        return OnnxSession(folder, device="cpu", threads=threads)
    raise ArtifactError(
        "config.pbtxt: svdq_trt_runtime",
        repr(runtime),
        "session or onnxruntime",
        "Write the repository again: svdq-trt triton.",
    )


def _refused(error: Exception) -> Any:
    """An error response: INVALID_ARG for the caller's mistakes; ours leave a traceback in the server's log."""
    if isinstance(error, ShapeError):
        reply = pb.TritonError(str(error), pb.TritonError.INVALID_ARG)
    elif isinstance(error, SvdqError):
        reply = pb.TritonError(str(error), pb.TritonError.INTERNAL)
    else:
        pb.Logger.log_error("".join(traceback.format_exception(error)))
        reply = pb.TritonError(f"{type(error).__name__}: {error}", pb.TritonError.INTERNAL)
    return pb.InferenceResponse(error=reply)


# Tensors pass by DLPack in both directions: the conversion to and from numpy in some releases of Triton was compiled
# for numpy 1 and, with numpy 2, silently makes tensors of zero bytes.


def _bfloat16(tensor: Any) -> np.ndarray:
    """A bfloat16 array, made by way of torch: numpy has neither the type nor DLPack's code for it."""
    from torch.utils.dlpack import from_dlpack

    return as_array(from_dlpack(tensor.to_dlpack()))


def _from_numpy(name: str, value: np.ndarray) -> Any:
    if value.dtype.name == "bfloat16":
        return pb.Tensor.from_dlpack(name, as_tensor(value))
    value = np.require(value, requirements=("C", "W"))  # DLPack has no word for read-only
    return pb.Tensor.from_dlpack(name, value)
