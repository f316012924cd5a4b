"""A module as an ONNX file with the model's inputs, outputs and dynamic axes; both exports go through here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from svdq_trt.base.progress import Progress

if TYPE_CHECKING:
    from svdq_trt.models import Axis, ModelSpec


def export_model(
    module: nn.Module,
    spec: ModelSpec,
    profile: Mapping[str, Sequence[int]],
    out: Path,
    progress: Progress,
    weights: bool = True,
    runtime_inputs: Sequence[str] = (),
    fuse_mlp: bool = True,
) -> dict[str, Any]:
    """Export `module` to `out`; sizes that the profile fixes (min = max) become static.

    Args:
        profile: symbol (batch, height, width, tokens) -> [min, opt, max].
        weights: False writes the graph alone.
        runtime_inputs, fuse_mlp: see svdq_export.export_onnx.
    """
    from svdq_export import export_onnx

    # Tracing specializes sizes 0 and 1: take the profile's largest sizes, where no dynamic one is 1.
    sizes = {symbol: values[2] for symbol, values in profile.items()}
    inputs = spec.example_inputs(**sizes, seed=0)  # type: ignore[arg-type]
    named = {io.name: tensor for io, tensor in zip(spec.inputs, inputs, strict=True)}
    info = export_onnx(
        spec.wrap(module),
        named,
        dynamic_shapes(spec, profile),
        [io.name for io in spec.outputs],
        out,
        wrapped=spec.family.WRAPPED,
        runtime_inputs=runtime_inputs,
        weights=weights,
        fuse_mlp=fuse_mlp,
        progress=lambda stage, done, total: progress(done, total, stage),
    )
    return {
        "nodes": list(info.svdq_nodes),
        "op_types": list(info.op_types),
        "node_count": info.node_count,
        "data_bytes": info.data_bytes,
    }


def dynamic_shapes(spec: ModelSpec, profile: Mapping[str, Sequence[int]]) -> dict[str, dict[int, Any]]:
    """torch.export's dynamic shapes: input name -> {dim: Dim}, for every axis that the profile does not fix.

    An axis that is always a multiple of m is m times a Dim, so that the model's divisibility checks hold.
    """
    from torch.export import Dim

    dims: dict[Axis, Any] = {}
    shapes: dict[str, dict[int, Any]] = {}
    for io in spec.inputs:
        own = shapes.setdefault(io.name, {})
        for index, axis in enumerate(io.dims):
            if isinstance(axis, int):
                continue
            low, _, high = (axis.size({s: v[i] for s, v in profile.items()}) for i in range(3))
            if low == high:
                continue
            if axis not in dims:  # with its range: without one, torch traces twice to find it
                dims[axis] = Dim(axis.name, min=low // axis.multiple, max=high // axis.multiple)
            own[index] = dims[axis] if axis.multiple == 1 else axis.multiple * dims[axis]
    return shapes
