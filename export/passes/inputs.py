"""Turn parameters that are supplied at run time into inputs of the graph."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir

from svdq_export.passes.names import unread


def parameters_to_inputs(model: ir.Model, names: Sequence[str]) -> None:
    """Append the initializers `names` to the graph's inputs, in that order and with their static shapes.

    Raises:
        UnsupportedError: one of a layer that the graph lacks, since no output depends on it.
    """
    graph = model.graph
    for name in names:
        if name not in graph.initializers:
            raise unread(name.rpartition(".")[0])
        value = graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.append(value)
