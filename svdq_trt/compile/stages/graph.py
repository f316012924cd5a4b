"""A module as an ONNX file with the model's inputs, outputs and dynamic axes; both exports go through here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from svdq_trt.compile.events import Progress

if TYPE_CHECKING:
    from svdq_trt.models import ModelSpec


def export_model(
    module: nn.Module, spec: ModelSpec, profile: Mapping[str, Sequence[int]], out: Path, progress: Progress
) -> dict[str, Any]:
    """Export `module` to `out`; sizes that the profile fixes (min = max) become static.

    Args:
        profile: symbol (batch, height, width, tokens) -> [min, opt, max].
    """
    from svdq_export import export_onnx

    # Tracing specializes sizes 0 and 1: take the profile's largest sizes, where no dynamic one is 1.
    sizes = {symbol: values[2] for symbol, values in profile.items()}
    inputs = spec.example_inputs(**sizes, seed=0)
    named = {io.name: tensor for io, tensor in zip(spec.inputs, inputs, strict=True)}
    info = export_onnx(
        spec.wrap(module), named, spec.dynamic_shapes(profile), [io.name for io in spec.outputs], out, progress=progress
    )
    return info.to_json()
