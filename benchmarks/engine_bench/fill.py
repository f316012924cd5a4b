"""An ONNX graph exported earlier (without its data) plus a module's tensors -> the complete model.

Tracing a large model takes a minute of CPU; on a rented GPU that minute can be spent elsewhere, as the graph depends
only on the model, the format and the ranges of sizes. The exporter names every initializer as the module does.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import onnx
import torch

from svdq_trt.runtime.shapes import as_array


def fill_graph(graph: Path, state: Mapping[str, torch.Tensor], out: Path) -> None:
    """Write `out` and ``<out>.data`` with every initializer that `state` names; shapes and types must agree."""
    model = onnx.load(graph, load_external_data=False)
    with (out.parent / f"{out.name}.data").open("wb") as file:
        for initializer in model.graph.initializer:
            tensor = state.get(initializer.name)
            external = initializer.data_location == onnx.TensorProto.EXTERNAL
            if tensor is None:
                if external:
                    raise SystemExit(f"{graph}: no tensor {initializer.name} in the module")
                continue
            wanted = onnx.helper.tensor_dtype_to_np_dtype(initializer.data_type)
            array = as_array(tensor.detach())
            if array.dtype != wanted or list(array.shape) != list(initializer.dims):
                raise SystemExit(f"{graph}: {initializer.name} is {array.dtype} {array.shape} in the module")
            if not external:
                initializer.raw_data = array.tobytes()
                continue
            place = {entry.key: entry.value for entry in initializer.external_data}
            file.seek(int(place["offset"]))
            array.tofile(file)
            next(e for e in initializer.external_data if e.key == "location").value = f"{out.name}.data"
    onnx.save_model(model, out)
