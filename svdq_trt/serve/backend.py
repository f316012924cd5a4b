"""What all models of Triton's Python backend share: an instance's place, and requests that go wrong one by one.

Every instance is a process of its own, with its own engine, and gets one batch of requests at a time: so a
session need not be thread-safe. Whatever goes wrong with a request becomes that request's error; the
process continues with the next one.
"""

from __future__ import annotations

import json
import traceback
from abc import ABC, abstractmethod
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import triton_python_backend_utils as pb  # exists only in Triton's stub process

from svdq_trt.base.errors import ArtifactError, RangeError, ShapeError, SvdqError, UnsupportedError, UsageError
from svdq_trt.serve.batching import grouped
from svdq_trt.serve.config import LORAS, RUNTIME
from svdq_trt.serve.dlpack import to_triton

if TYPE_CHECKING:
    import numpy as np

    from svdq_trt.runtime.lora import LoraSet
    from svdq_trt.runtime.onnx_session import OnnxSession
    from svdq_trt.runtime.session import Session

#: what a client can do about: Triton's INVALID_ARG
_MISTAKES = (ShapeError, UsageError, RangeError, UnsupportedError)
#: name and strength of a LoRA
Lora = tuple[str, float]
NO_LORA: Lora = ("", 1.0)
Read = TypeVar("Read")


@dataclass(frozen=True)
class Instance:
    """One instance of a model.

    Attributes:
        name: in Triton. folder: its version folder. parameters: those of config.pbtxt. device: the GPU's index.
        copies: instances of the model. limit: its max_batch_size; 0: requests are not merged.
    """

    name: str
    folder: Path
    parameters: dict[str, str]
    device: int
    copies: int
    limit: int

    @classmethod
    def of(cls, args: dict[str, str]) -> Instance:
        """By what Triton gives to `initialize`."""
        config = json.loads(args["model_config"])
        return cls(
            args["model_instance_name"],
            Path(args["model_repository"]) / args["model_version"],
            {key: value["string_value"] for key, value in config.get("parameters", {}).items()},
            int(args["model_instance_device_id"]),
            sum(group["count"] for group in config["instance_group"]),
            config["max_batch_size"],
        )

    def runtime(self, known: dict[str, str]) -> str:
        """The one of `known` that the parameters name, by its value. Raises ArtifactError."""
        name = self.parameters.get(RUNTIME, "")
        if name not in known:
            where, fix = f"config.pbtxt: {RUNTIME}", "Write the repository again: svdq-trt triton."
            raise ArtifactError(where, repr(name), " or ".join(known), fix)
        return known[name]

    def log_open(self) -> None:
        """Say in the server's log that it is ready."""
        pb.Logger.log_info(f"{self.name}: {self.folder} open in {self.parameters[RUNTIME]}")


class Loras:
    """The LoRAs that requests can name, laid out for an engine's slots."""

    def __init__(self, runner: Session | OnnxSession, here: Instance) -> None:
        self._runner = runner
        files = json.loads(here.parameters.get(LORAS, "{}"))
        self._sets: dict[str, LoraSet] = {
            name: runner.prepare_lora([(here.folder / file, strength)]) for name, (file, strength) in files.items()
        }
        if self._sets:
            self._sets[""] = runner.prepare_lora(())
        self._current = NO_LORA

    def wanted(self, request: Any) -> Lora:
        """The parameter ``lora`` of a request, NAME or NAME:STRENGTH. Raises UsageError."""
        text = json.loads(request.parameters() or "{}").get("lora", "")
        name, _, strength = str(text).partition(":")
        if name and name not in self._sets:
            known = ", ".join(filter(None, self._sets))
            known = f"one of {known}" if known else "none, as the model is served without LoRAs"
            raise UsageError("request parameter 'lora'", repr(name), known)
        try:
            return name, float(strength or 1)
        except ValueError:
            raise UsageError("request parameter 'lora'", repr(text), "NAME or NAME:STRENGTH") from None

    def swap_in(self, lora: Lora) -> None:
        """Fill the engine's slots."""
        if lora != self._current:
            name, strength = lora
            self._runner.set_lora(self._sets[name], strength)
            self._current = lora


class Served(ABC, Generic[Read]):
    """A model. Triton calls `initialize` once, then `execute`, then `finalize`, never two at a time."""

    def execute(self, requests: list[Any]) -> None:
        """Run the requests; each is answered as soon as those that run with it are done."""
        senders = [request.get_response_sender() for request in requests]
        good: dict[int, Read] = {}
        for index, request in enumerate(requests):
            try:
                good[index] = self._read(request)
            except Exception as error:
                _send(senders[index], _refused(error))
        for group in self._groups(good):
            answers = self._answers([good[place] for place in group])
            for place, answer in zip(group, answers, strict=True):
                _send(senders[place], answer)

    def _groups(self, good: dict[int, Read]) -> list[list[int]]:
        """Places of requests that run together."""
        places, keyed = list(good), [self._key(one) for one in good.values()]
        groups = grouped([key for key, _ in keyed], [batch for _, batch in keyed], self._most())
        return [[places[i] for i in group] for group in groups]

    def _answers(self, group: list[Read]) -> list[Any]:
        try:
            parts = self._run(group)
            return [pb.InferenceResponse([to_triton(pb.Tensor, name, part[name]) for name in part]) for part in parts]
        except Exception as error:
            return [_refused(error) for _ in group]

    @abstractmethod
    def _read(self, request: Any) -> Read:
        """Read a request, checked before anything runs."""

    @abstractmethod
    def _key(self, read: Read) -> tuple[Hashable, int]:
        """What must be equal in requests that run together, and this one's share of `_most`."""

    @abstractmethod
    def _most(self) -> int:
        """The largest batch that runs together; 0: every request by itself."""

    @abstractmethod
    def _run(self, group: list[Read]) -> list[dict[str, np.ndarray]]:
        """Run requests together; returns the outputs of each."""


def _send(sender: Any, answer: Any) -> None:
    """Answer a request: with one response, which is its last."""
    sender.send(answer, flags=pb.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


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
