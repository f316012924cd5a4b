"""Dynamic shapes: one optimization profile of a model, from its ranges of batch, height and width."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TensorProfile:
    """One input or output of an engine.

    Attributes:
        name, dtype: as in the ONNX file. min, opt, max: shapes of the profile.
    """

    name: str
    dtype: str
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]
