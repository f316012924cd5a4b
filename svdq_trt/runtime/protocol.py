"""The interface of everything that runs a model: a TensorRT engine, an ONNX file in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from svdq_trt.artifact.manifest import TensorProfile


class Runner(Protocol):
    """Named tensors in, named tensors out.

    Attributes:
        model: name of the model; "" where it is not known, as for an ONNX file by itself.
    """

    @property
    def model(self) -> str:
        """Name of the model, as in ``svdq-trt models``."""

    @property
    def output_names(self) -> Sequence[str]:
        """Names of the outputs, in the model's order."""

    @property
    def seconds(self) -> Mapping[str, float]:
        """Time of opening, by part: check, load, ..."""

    @property
    def inputs(self) -> Sequence[TensorProfile]:
        """Name, dtype and range of every input, in order."""

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Run on torch tensors or numpy arrays by name; returns outputs by name, in numpy if all inputs are."""

    def close(self) -> None:
        """Free its memory; a second call does nothing."""
