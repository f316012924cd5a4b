"""What everything that runs a model has in common: a TensorRT engine, an ONNX file in ONNX Runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from svdq_trt.artifact.manifest import TensorProfile


class Runner(Protocol):
    """Named tensors in, named tensors out.

    Attributes:
        model: name of the model that runs; "" where that is not known, as of an ONNX file by itself.
    """

    @property
    def model(self) -> str:
        """As ``svdq-trt models`` lists it."""

    @property
    def output_names(self) -> Sequence[str]:
        """In the model's order."""

    @property
    def inputs(self) -> Sequence[TensorProfile]:
        """Name, dtype and range of every input, in order."""

    def run(self, inputs: Mapping[str, Any]) -> dict[str, Any]:
        """Torch tensors or numpy arrays by name -> outputs by name; all numpy in gives numpy out."""

    def close(self) -> None:
        """Free what it holds; a second call does nothing."""
