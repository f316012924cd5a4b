"""Constants that passes add to a graph."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import ArrayLike


def integers(graph: ir.Graph, name: str, values: ArrayLike) -> ir.Value:
    """An initializer of whole numbers (int64), as shapes and indices are."""
    array = np.asarray(values, np.int64)
    kind, shape = ir.TensorType(ir.DataType.INT64), ir.Shape(array.shape)
    value = ir.Value(name=name, type=kind, shape=shape, const_value=ir.tensor(array, name=name))
    graph.register_initializer(value)
    return value
