"""Reading inputs, outputs and number types of an ONNX file without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from svdq_trt.artifact.manifest import TensorProfile
from svdq_trt.base.errors import ArtifactError

if TYPE_CHECKING:
    import onnx

#: upper bound of a dimension that the file leaves open
UNBOUNDED = 2**31 - 1


@dataclass(frozen=True)
class Graph:
    """What a runner must know about an ONNX file.

    Attributes:
        inputs: open dimensions range from 1 to UNBOUNDED. outputs: name -> dtype.
        has_bfloat16: whether an input, an output or a weight is bfloat16.
    """

    inputs: list[TensorProfile]
    outputs: dict[str, str]
    has_bfloat16: bool


def read_graph(path: Path) -> Graph:
    """Read an ONNX file's interface.

    Raises:
        ArtifactError: missing, not ONNX, or without its weights.
    """
    import onnx
    from google.protobuf.message import DecodeError

    try:
        graph = onnx.load(str(path), load_external_data=False).graph
    except OSError as error:
        raise ArtifactError(str(path), f"cannot be read ({error.strerror})", "an ONNX file") from error
    except DecodeError as error:
        raise ArtifactError(str(path), "not ONNX", "an ONNX file") from error
    if not graph.output:
        raise ArtifactError(str(path), "a graph without outputs", "an ONNX file")
    _check_data(path, graph)
    weights = {i.name for i in graph.initializer}
    inputs = [_profile(value) for value in graph.input if value.name not in weights]
    outputs = {value.name: _dtype(value) for value in graph.output}
    bfloat16 = onnx.TensorProto.BFLOAT16
    kinds = {v.type.tensor_type.elem_type for v in (*graph.input, *graph.output)}
    kinds |= {i.data_type for i in graph.initializer}
    return Graph(inputs, outputs, bfloat16 in kinds)


def _check_data(path: Path, graph: onnx.GraphProto) -> None:
    """Raise ArtifactError for a file of weights that the graph names and that does not lie beside it."""
    entries = (e for i in graph.initializer for e in i.external_data if e.key == "location")
    for name in sorted({entry.value for entry in entries}):
        if not (path.parent / name).is_file():
            where = str(path.parent / Path(name).name)
            raise ArtifactError(where, "missing", f"the weights of {path.name}", "Copy it there, under that name.")


def _dtype(value: onnx.ValueInfoProto) -> str:
    from onnx.helper import tensor_dtype_to_np_dtype

    return tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type).name


def _profile(value: onnx.ValueInfoProto) -> TensorProfile:
    dims = value.type.tensor_type.shape.dim
    low = tuple(d.dim_value if d.HasField("dim_value") else 1 for d in dims)
    high = tuple(d.dim_value if d.HasField("dim_value") else UNBOUNDED for d in dims)
    return TensorProfile(value.name, _dtype(value), low, low, high, tuple(d.dim_param for d in dims))
