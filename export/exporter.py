"""PyTorch module -> one ONNX file and its data: the steps, in order."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir
import torch
from torch import Tensor, nn

from svdq_export.bodies import OPSET
from svdq_export.passes.dtypes import unify_input_types
from svdq_export.passes.einsum import einsum_to_transpose
from svdq_export.passes.functions import add_bodies
from svdq_export.passes.inputs import parameters_to_inputs
from svdq_export.passes.masks import expand_masks
from svdq_export.passes.metadata import strip_metadata
from svdq_export.passes.mlp import fuse_mlps
from svdq_export.passes.names import drop_prefix, name_svdq_nodes, require_all_nodes
from svdq_export.passes.pixels import pixels_to_tokens
from svdq_export.passes.simplify import simplify
from svdq_export.passes.sizes import name_sizes
from svdq_export.passes.squeeze import squeeze_to_reshape
from svdq_export.passes.unjoin import unjoin_slices
from svdq_export.pieces import take_cuts, write_pieces
from svdq_export.schema import register_schemas
from svdq_export.translate import translation_table
from svdq_export.write import data_path, require_onnx_suffix, write_graph, write_model
from svdq_trt.base.errors import UsageError
from svdq_trt.base.garbage import no_collections
from svdq_trt.base.needs import lacking, need_parameters
from svdq_trt.base.progress import Progress
from svdq_trt.contract.ops import DOMAIN

Dim = Any  # torch.export.Dim, a multiple of one, a hint such as Dim.AUTO (whose types are private), or a name
DynamicShapes = dict[str, dict[int, Dim]]
_OPTIONS = ("dynamo", "opset_version", "dynamic_shapes", "input_names", "optimize", "custom_translation_table")


@dataclass(frozen=True)
class OnnxInfo:
    """The file that was written.

    Attributes:
        path: the .onnx file; weights are in ``<path>.data`` beside it.
        inputs, outputs: graph inputs and outputs, name -> (dtype, shape); a dynamic dimension is its name.
        svdq_nodes: names of the svdq nodes, in graph order: a module's path, or two joined (contract/ops.py).
        op_types: svdq op types in use, each with a function body in the file.
        node_count: nodes of the main graph.
        data_bytes: size of the external data file.
    """

    path: Path
    inputs: dict[str, tuple[str, tuple[int | str, ...]]]
    outputs: dict[str, tuple[str, tuple[int | str, ...]]]
    svdq_nodes: tuple[str, ...]
    op_types: tuple[str, ...]
    node_count: int
    data_bytes: int


def export_onnx(
    module: nn.Module,
    inputs: dict[str, Tensor],
    dynamic_shapes: dict[str, dict[int, Dim]],
    output_names: Sequence[str],
    path: Path,
    *,
    wrapped: str = "",
    runtime_inputs: Sequence[str] = (),
    progress: Progress | None = None,
    weights: bool = True,
    fuse_mlp: bool = True,
    cuts: bool = False,
) -> OnnxInfo:
    """Export a module, quantized or not, at opset 23.

    Args:
        module: the module, called as ``module(**inputs)``; returns tensors only. Its parameters are on the CPU.
        inputs: sample inputs by parameter name, in the order of ``forward``; their names become the graph's.
        dynamic_shapes: input -> {axis: name}; names shared between axes are the same dimension to a reader.
        output_names: names of the graph outputs, in order.
        path: where the .onnx goes.
        wrapped: attribute of `module` that holds the real model; names in the graph are paths inside that.
        runtime_inputs: parameters, by their names in the graph, that become inputs after the others.
        progress: called with (done, total, step); steps are "trace", "simplify", "write".
        weights: False writes the graph alone, with places for the weights; see write.write_graph.
        fuse_mlp: two linears with GELU, GEGLU or SwiGLU between them become one node where there is such an op.
        cuts: the module returns x0, x1 and x2 of models/first_block.py behind its outputs, which the graph lacks; they
            say where it is cut into the pieces that are written beside it.

    Returns:
        Names, types and sizes of what was written.

    Raises:
        UsageError: a name in `dynamic_shapes` that is not an input.
        UnsupportedError: a quantized layer, or one of `runtime_inputs`, on which no output depends.
        ArtifactError: the path does not end in .onnx, or the graph fails onnx.checker.
    """
    require_onnx_suffix(path)
    unknown = sorted(set(dynamic_shapes) - set(inputs))
    if unknown:
        raise UsageError("dynamic_shapes", f"'{unknown[0]}'", f"one of {', '.join(inputs)}")
    _report(progress, "trace", 0)
    marks = ("x0", "x1", "x2") if cuts else ()
    model = _trace(module, inputs, dynamic_shapes, (*output_names, *marks))
    _report(progress, "trace", 1)
    _report(progress, "simplify", 0)
    parameters = {name for name, _ in (*module.named_parameters(), *module.named_buffers())}
    simplify(model, parameters)
    unjoin_slices(model)
    pixels_to_tokens(model)
    unify_input_types(model)
    squeeze_to_reshape(model)
    einsum_to_transpose(model)
    expand_masks(model)
    name_svdq_nodes(model)
    if wrapped:
        drop_prefix(model, wrapped)
        parameters = {name.removeprefix(f"{wrapped}.") for name in parameters}
    require_all_nodes(model, parameters)
    if fuse_mlp:
        fuse_mlps(model)
    x0 = take_cuts(model) if cuts else ""
    parameters_to_inputs(model, runtime_inputs)
    nodes = [node.name or "" for node in model.graph.all_nodes() if node.domain == DOMAIN]
    op_types = add_bodies(model)
    strip_metadata(model)
    _report(progress, "simplify", 1)
    if weights:
        write_model(model, path, progress)
    else:
        write_graph(model, path, parameters)
    if cuts:
        write_pieces(path, x0)
    return OnnxInfo(
        path=path,
        inputs={_name(v): _type(v) for v in model.graph.inputs},
        outputs={_name(v): _type(v) for v in model.graph.outputs},
        svdq_nodes=tuple(nodes),
        op_types=tuple(op_types),
        node_count=len(model.graph),
        data_bytes=data_path(path).stat().st_size if weights else 0,
    )


def _trace(
    module: nn.Module, inputs: dict[str, Tensor], dynamic_shapes: DynamicShapes, output_names: Sequence[str]
) -> ir.Model:
    """Trace with torch.export and translate to ONNX; weights are shared with the module, not copied."""
    register_schemas()
    need_parameters("torch", torch.onnx.export, _OPTIONS)
    shapes = {name: dict(dynamic_shapes.get(name, {})) for name in inputs}
    with warnings.catch_warnings(), torch.no_grad(), no_collections():
        warnings.simplefilter("ignore")  # warnings of the exporter about its own internals
        program = torch.onnx.export(
            module,
            (),
            kwargs=inputs,
            dynamo=True,
            opset_version=OPSET,
            dynamic_shapes=shapes,
            input_names=list(inputs),
            output_names=list(output_names),
            optimize=False,
            verbose=False,
            custom_translation_table=translation_table(),
        )
    model, traced = getattr(program, "model", None), getattr(program, "exported_program", None)
    if not isinstance(model, ir.Model) or traced is None:
        raise lacking("torch", "ONNX program with an onnx_ir model")
    name_sizes(model, {n.name: n.meta["val"].shape for n in traced.graph.nodes if n.name in inputs})
    return model


def _report(progress: Progress | None, step: str, done: int) -> None:
    if progress is not None:
        progress(done, 1, step)


def _name(value: ir.Value) -> str:
    assert value.name is not None
    return value.name


def _type(value: ir.Value) -> tuple[str, tuple[int | str, ...]]:
    assert value.dtype is not None and value.shape is not None
    return value.dtype.name.lower(), tuple(d if isinstance(d, int) else str(d) for d in value.shape)
