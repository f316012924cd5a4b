"""Turn parameters that are supplied at run time into inputs of the graph."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir


def parameters_to_inputs(model: ir.Model, names: Sequence[str]) -> None:
    """Append the initializers `names` to the graph's inputs, in that order and with their static shapes."""
    graph = model.graph
    for name in names:
        value = graph.initializers.pop(name)
        value.const_value = None
        graph.inputs.append(value)
