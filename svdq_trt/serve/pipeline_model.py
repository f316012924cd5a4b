"""The class that Triton's Python backend runs for a pipeline of engines: a prompt to a picture.

A request is one picture, with a seed of its own. Requests that differ in prompts and seed alone run in one call of the
pipeline, as many as the denoiser's batch has rows for.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass
from typing import Any

import numpy as np

from svdq_trt.base.errors import UsageError
from svdq_trt.base.extras import required_by
from svdq_trt.runtime.loading import load
from svdq_trt.runtime.request import Request
from svdq_trt.serve.backend import Instance, Lora, Loras, Served
from svdq_trt.serve.config import IMAGE, TEXTS, WARM_UP, batch_range
from svdq_trt.serve.dlpack import from_triton


@dataclass(frozen=True)
class _Request:
    """A request that may run. Attributes: rows: of the denoiser's batch."""

    asked: Request
    rows: int
    lora: Lora


class TritonPythonModel(Served[_Request]):
    """One instance."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the engines in the version folder.

        Raises:
            SvdqError: one does not open, or a library is missing; Triton then reports the model as failed, with this
                text.
        """
        here = Instance.of(args)
        runtime = here.runtime({"session": "tensorrt", "onnxruntime": "onnx"})
        with required_by("a pipeline in Triton"):
            self._pipe = load(here.folder, runtime=runtime, device=here.device, onnx_device="cpu")
            from svdq_trt.models.denoiser import attached
            from svdq_trt.runtime import generate
        self._generate = generate
        self._pipe.set_progress_bar_config(disable=True)  # in the server's log
        session: Any
        (session,) = (one.runner for one in attached(self._pipe).values())
        self._limit = here.limit
        self._rows = (batch_range(session.manifest) or (1, 1))[1]
        self._loras = Loras(session, here)
        if WARM_UP in here.parameters:
            generate.generate(self._pipe, Request("", steps=1))
        here.log_open()

    def _read(self, request: Any) -> _Request:
        lora = self._loras.wanted(request)
        given = {tensor.name(): from_triton(tensor) for tensor in request.inputs()}
        if self._limit:
            given = {name: _only(name, value) for name, value in given.items()}
        if "prompt" not in given:  # which Triton lets pass where a model has optional inputs
            raise UsageError("prompt", "missing", "text in UTF-8")
        values: dict[str, Any] = {
            name: _text(name, value) if name in TEXTS else value.item() for name, value in given.items()
        }
        asked = Request(**values)
        self._generate.check(self._pipe, asked)
        return _Request(asked, self._generate.rows(self._pipe, asked), lora)

    def _key(self, read: _Request) -> tuple[Hashable, int]:
        return (read.lora, read.asked.common), read.rows

    def _most(self) -> int:
        return self._rows if self._limit else 0

    def _run(self, group: list[_Request]) -> list[dict[str, np.ndarray]]:
        self._loras.swap_in(group[0].lora)
        pictures, _ = self._generate.generate(self._pipe, *(one.asked for one in group))
        images = [np.asarray(picture) for picture in pictures]
        return [{IMAGE: image[None] if self._limit else image} for image in images]


def _only(name: str, value: np.ndarray) -> np.ndarray:
    """The row of an input of a model that merges. Raises UsageError: several, or none."""
    if len(value) != 1:
        raise UsageError(name, f"a batch of {len(value)}", "one picture in a request", "Send a request for each.")
    row: np.ndarray = value[0]
    return row


def _text(name: str, value: np.ndarray) -> str:
    """The text of an input. Raises UsageError: its bytes are none."""
    try:
        return value.tobytes().decode()
    except UnicodeDecodeError:
        raise UsageError(name, "bytes that are not UTF-8", "text in UTF-8") from None
