"""``config.pbtxt`` of a model, built as Triton's own protobuf message, so that no field can be misspelt.

Batch. By default ``max_batch_size`` is 0: the shapes are the engine's, including the batch axis, and a client sends
what ``Session.run`` takes. With dynamic batching it is the profile's largest batch, dims are without the batch axis,
and an input of shape [batch] is sent as [batch, 1], because Triton has no empty dims.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from svdq_trt.artifact.manifest import Manifest, Tensor
from svdq_trt.base.errors import ShapeError, UnsupportedError, UsageError

#: dtype of the manifest -> Triton's
DTYPES = {
    "float16": "TYPE_FP16",
    "bfloat16": "TYPE_BF16",
    "float32": "TYPE_FP32",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "int8": "TYPE_INT8",
    "uint8": "TYPE_UINT8",
    "bool": "TYPE_BOOL",
}
#: parameter of every config that this module writes, by which a later run recognizes its own folder
MARK = "svdq_trt_variant"


@dataclass(frozen=True)
class Serving:
    """Options for serving a model.

    Attributes:
        name: name of the model in Triton. variant: tensorrt, python or onnxruntime. device: gpu or cpu.
        instances: copies per device, each with an engine of its own.
        queue_delay_us: merge requests, waiting this long for others; None runs each request by itself.
    """

    name: str
    variant: str
    device: str
    instances: int = 1
    queue_delay_us: int | None = None


def model_config(manifest: Manifest, serving: Serving, file: str, parameters: dict[str, str]) -> Any:
    """The ``inference.ModelConfig`` message of an engine folder.

    Args:
        file: the file in the version folder that Triton's backend opens.
        parameters: parameters for the backend, as text.

    Raises:
        UnsupportedError: tritonclient is not installed. UsageError: dynamic batching where the engine has no batch
            axis to merge on.
    """
    pb = _protobuf()
    batch = batch_range(manifest)
    config = pb.ModelConfig(name=serving.name, backend=serving.variant, default_model_filename=file)
    if serving.variant == "tensorrt":
        config.platform = "tensorrt_plan"  # older servers know a backend by its platform
    if serving.queue_delay_us is not None:
        if batch is None or batch[0] == batch[1]:
            raise UsageError(
                "--dynamic-batching",
                f"an engine with {_batch_text(batch)}",
                "a range of batches, from 1 on",
                "Build it with --batch 1:2:4.",
            )
        config.max_batch_size = batch[1]
        config.dynamic_batching.max_queue_delay_microseconds = serving.queue_delay_us
    for tensors, add in ((manifest.inputs, config.input.add), (manifest.outputs, config.output.add)):
        for tensor in tensors:
            _describe(add(), pb, tensor, merged=config.max_batch_size > 0)
    group = config.instance_group.add(count=serving.instances)
    group.kind = pb.ModelInstanceGroup.KIND_GPU if serving.device == "gpu" else pb.ModelInstanceGroup.KIND_CPU
    for key, value in {MARK: serving.variant, **parameters}.items():
        config.parameters[key].string_value = value
    return config


def to_text(config: Any) -> str:
    """The message as ``config.pbtxt``."""
    from google.protobuf import text_format

    return str(text_format.MessageToString(config))


def from_text(text: str) -> Any:
    """``config.pbtxt`` as a message; google.protobuf.text_format.ParseError where Triton would refuse to parse it."""
    from google.protobuf import text_format

    return text_format.Parse(text, _protobuf().ModelConfig())


def batch_range(manifest: Manifest) -> tuple[int, int] | None:
    """Smallest and largest batch: the range of the first axis of every input and output; None if they differ."""
    first = set()
    for tensor in (*manifest.inputs, *manifest.outputs):
        shape = tensor.shape
        first.add((shape.min[0], shape.max[0]) if shape.min else (-1, -1))
    low, high = next(iter(first), (-1, -1))
    return (low, high) if len(first) == 1 and low > 0 else None


def dims(tensor: Tensor) -> list[int]:
    """Sizes of an input or output of the manifest, -1 where the profile has a range."""
    return [a if a == b else -1 for a, b in zip(tensor.shape.min, tensor.shape.max, strict=True)]


def largest_bytes(manifest: Manifest) -> int:
    """Bytes of all inputs and outputs at the largest shapes: the most that one request can carry."""
    width = {"float32": 4, "int32": 4, "int64": 8, "int8": 1, "uint8": 1, "bool": 1}
    tensors = (*manifest.inputs, *manifest.outputs)
    return sum(math.prod(t.shape.max) * width.get(t.dtype, 2) for t in tensors)


def _describe(entry: Any, pb: Any, tensor: Tensor, merged: bool) -> None:
    entry.name = tensor.name
    if tensor.dtype not in DTYPES:
        raise ShapeError(f"'{tensor.name}'", tensor.dtype, f"one of {', '.join(DTYPES)}")
    entry.data_type = pb.DataType.Value(DTYPES[tensor.dtype])
    sizes = dims(tensor)[1:] if merged else dims(tensor)
    if not sizes:  # [batch], or a scalar: the backend gets no axis for the client's 1
        entry.reshape.SetInParent()
    entry.dims.extend(sizes or [1])


def _batch_text(batch: tuple[int, int] | None) -> str:
    return "no common batch axis" if batch is None else f"batch {batch[0]} alone"


def _protobuf() -> Any:
    try:
        from tritonclient.grpc import model_config_pb2
    except ImportError as error:
        raise UnsupportedError(
            "tritonclient",
            str(error),
            "Triton's own description of its configuration",
            'pip install "svdq-trt[triton]"',
        ) from error
    return model_config_pb2
