"""Exporting a module to ONNX with the model's inputs, outputs and dynamic axes; both exports go through here."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import nn
from torch.export import Dim

from svdq_export.exporter import OnnxInfo, export_onnx
from svdq_trt.base.progress import Progress
from svdq_trt.models import ModelSpec
from svdq_trt.models.first_block import Cuts, return_cuts
from svdq_trt.models.parts import Part
from svdq_trt.nn.attention import use_packed


@cache
def import_exporter() -> None:
    """Import all that `export_model` does. torch imports much of it only when it traces, here a sum."""
    # Else its progress bars start a thread, which no fork of this process would have.
    torch.hub.tqdm.monitor_interval = 0  # type: ignore[attr-defined]
    with TemporaryDirectory() as folder:
        export_onnx(_Sum(), {"x": torch.ones(2)}, {"x": {0: Dim("n", max=4)}}, ["y"], Path(folder) / "sum.onnx")


class _Sum(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + 1


def export_model(
    module: nn.Module,
    spec: ModelSpec | Part,
    ranges: Mapping[str, Sequence[int]],
    out: Path,
    progress: Progress,
    weights: bool = True,
    runtime_inputs: Sequence[str] = (),
    fuse_mlp: bool = True,
    attention: Collection[int] = (),
    cuts: Cuts | None = None,
) -> OnnxInfo:
    """Export `module` to `out`; sizes with min = max become static.

    Args:
        ranges: symbol (batch, height, ...) -> (min, max).
        weights: False writes the graph alone.
        runtime_inputs, fuse_mlp: see svdq_export.export_onnx.
        attention: head sizes of the attentions that become svdq nodes; the others are TensorRT's.
        cuts: where the graph is cut into pieces, which are written too.
    """
    # Tracing specializes sizes 0 and 1: take the largest sizes, where no dynamic one is 1.
    sizes = {symbol: values[-1] for symbol, values in ranges.items()}
    inputs = spec.example_inputs(**sizes, seed=0)  # type: ignore[arg-type]
    named = {io.name: tensor for io, tensor in zip(spec.inputs, inputs, strict=True)}
    wrapped = spec.wrap(module)
    use_packed(wrapped, attention)
    if cuts is not None:
        return_cuts(wrapped, spec.wrapped, cuts)
    return export_onnx(
        wrapped,
        named,
        dynamic_shapes(spec, ranges),
        [io.name for io in spec.outputs],
        out,
        wrapped=spec.wrapped,
        runtime_inputs=runtime_inputs,
        weights=weights,
        fuse_mlp=fuse_mlp,
        cuts=cuts is not None,
        progress=progress,
    )


def dynamic_shapes(spec: ModelSpec | Part, ranges: Mapping[str, Sequence[int]]) -> dict[str, dict[int, Any]]:
    """torch.export's dynamic shapes: input name -> {dim: Dim}, for every axis whose min and max differ.

    An axis that is always a multiple of m is m times a Dim, so that the model's divisibility checks hold. Axes of one
    name whose steps are as large, such as a picture's and its latent's, have the same Dim.
    """
    dims: dict[tuple[str, int, int], Any] = {}
    shapes: dict[str, dict[int, Any]] = {}
    for io in spec.inputs:
        own = shapes.setdefault(io.name, {})
        for index, axis in enumerate(io.dims):
            if isinstance(axis, int):
                continue
            low, high = (axis.size({s: v[end] for s, v in ranges.items()}) for end in (0, -1))
            if low == high:
                continue
            bounds = low // axis.multiple, high // axis.multiple
            key = axis.name, *bounds
            if key not in dims:  # with its range: without one, torch traces twice to find it
                dims[key] = Dim(axis.name, min=bounds[0], max=bounds[1])
            own[index] = dims[key] if axis.multiple == 1 else axis.multiple * dims[key]
    return shapes
