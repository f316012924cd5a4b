"""A graph of a pipeline beside its denoiser, in 16 bit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

from torch import nn

from svdq_trt.models.spec import Axis, TensorIO

BATCH = Axis("batch")


class PartGraph(nn.Module, ABC):
    """A module with the inputs and outputs of its graph.

    Attributes:
        library: where the module's class is, "transformers" or "diffusers".
        attention: transformers' name of the function that a module of it is exported with.
    """

    library: ClassVar[str]
    attention: ClassVar[str] = "eager"

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    @staticmethod
    @abstractmethod
    def inputs(config: Any, tokens: int) -> tuple[TensorIO, ...]:
        """The graph's inputs, for a module with that config and length of text, which CLIP has in its config."""

    @staticmethod
    @abstractmethod
    def outputs(config: Any, tokens: int) -> tuple[TensorIO, ...]:
        """The graph's outputs."""
