"""Drop what the exporter recorded about the machine: stack traces, source paths, fx text."""

from __future__ import annotations

import onnx_ir as ir

import svdq_trt


def strip_metadata(model: ir.Model) -> None:
    """Clear metadata and doc strings everywhere and name this project as the producer."""
    graphs = [model.graph, *model.graph.subgraphs(), *(f.graph for f in model.functions.values())]
    model.metadata_props.clear()
    model.doc_string = None
    for graph in graphs:
        graph.metadata_props.clear()
        graph.doc_string = None
        for value in (*graph.inputs, *graph.outputs, *graph.initializers.values()):
            _clear(value)
        for node in graph:
            _clear(node)
            for value in node.outputs:
                _clear(value)
    model.producer_name, model.producer_version = "svdq-trt", svdq_trt.__version__
    model.graph.name = "main"


def _clear(item: ir.Node | ir.Value) -> None:
    item.metadata_props.clear()
    item.doc_string = None
