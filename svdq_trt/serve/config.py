"""``config.pbtxt`` of a model, built as Triton's own protobuf message, so that no field can be misspelt.

Batch. By default ``max_batch_size`` is 0: the shapes are the engine's, including the batch axis, and a client sends
what ``Session.run`` takes. With dynamic batching it is the profile's largest batch, dims are without the batch axis,
and an input of shape [batch] is sent as [batch, 1], because Triton has no empty dims. Triton then wants a batch axis in
every input: one that has none in the engine (FLUX's img_ids) is sent with one, and svdq-trt's model takes it off.

A pipeline's inputs are what a picture is asked for with, and the same for all engines.
"""

from __future__ import annotations

import math
from collections.abc import Container
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svdq_trt.artifact.manifest import Manifest, Tensor
from svdq_trt.base.errors import ArtifactError, ShapeError, UsageError
from svdq_trt.base.extras import required_by

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
#: parameters for python_model: session or onnxruntime; replay CUDA graphs; JSON, {name: [file, strength]}
RUNTIME, CUDA_GRAPHS, LORAS = "svdq_trt_runtime", "svdq_trt_cuda_graphs", "svdq_trt_loras"
#: parameter for pipeline_model: make a picture before the model is ready
WARM_UP = "svdq_trt_warm_up"
#: variants that Triton's Python backend runs
OURS = ("python", "pipeline")
#: inputs of a pipeline, by the names of runtime.request.Request: text, in UTF-8, and numbers
TEXTS = ("prompt", "negative")
NUMBERS = {
    "width": "TYPE_INT32",
    "height": "TYPE_INT32",
    "steps": "TYPE_INT32",
    "guidance": "TYPE_FP32",
    "seed": "TYPE_INT64",
}
#: output of a pipeline: [H, W, 3]
IMAGE = "image"


@dataclass(frozen=True)
class ServedLora:
    """A LoRA that requests can name. The engine has LoRA slots."""

    name: str
    path: Path
    strength: float

    @property
    def file(self) -> str:
        """Its name in the version folder."""
        return f"lora-{self.name}.safetensors"


@dataclass(frozen=True)
class Serving:
    """Options for serving a model.

    Attributes:
        name: name of the model in Triton. variant: tensorrt, python, onnxruntime or pipeline. device: gpu or cpu.
        instances: copies per device, each with an engine of its own.
        queue_delay_us: merge requests, waiting this long for others; None runs each request by itself.
        version: the version folder to write, beside those that are there; None makes version 1 the only one.
        warm_up: run at the profile's opt shapes before the model is ready. cuda_graphs: replay CUDA graphs.
        loras: those that requests can name.
    """

    name: str
    variant: str
    device: str
    instances: int = 1
    queue_delay_us: int | None = None
    version: int | None = None
    warm_up: bool = False
    cuda_graphs: bool = False
    loras: tuple[ServedLora, ...] = ()


def model_config(manifest: Manifest, serving: Serving, file: str, parameters: dict[str, str]) -> Any:
    """The ``inference.ModelConfig`` message of an engine folder.

    Args:
        file: the file in the version folder that Triton's backend opens.
        parameters: parameters for the backend, as text.

    Raises:
        UnsupportedError: tritonclient is not installed. UsageError: dynamic batching where there is nothing to merge
            on; CUDA graphs on a CPU.
    """
    pb = _protobuf()
    backend = "python" if serving.variant in OURS else serving.variant
    config = pb.ModelConfig(name=serving.name, backend=backend, default_model_filename=file)
    if serving.variant == "tensorrt":
        config.platform = "tensorrt_plan"  # older servers know a backend by its platform
    if serving.queue_delay_us is not None:
        config.max_batch_size = _largest_batch(manifest, serving.variant)
        config.dynamic_batching.max_queue_delay_microseconds = serving.queue_delay_us
    if serving.variant == "pipeline":
        _describe_pipeline(config, pb)
    else:
        _describe_denoiser(config, pb, manifest, serving)
    group = config.instance_group.add(count=serving.instances)
    group.kind = pb.ModelInstanceGroup.KIND_GPU if serving.device == "gpu" else pb.ModelInstanceGroup.KIND_CPU
    for key, value in {MARK: serving.variant, **parameters}.items():
        config.parameters[key].string_value = value
    return config


def to_text(config: Any) -> str:
    """The message as ``config.pbtxt``."""
    from google.protobuf import text_format

    return str(text_format.MessageToString(config))


def from_text(text: str, where: str = "config.pbtxt") -> Any:
    """``config.pbtxt`` as a message.

    Raises:
        ArtifactError: Triton would refuse to parse it.
    """
    from google.protobuf import text_format

    try:
        return text_format.Parse(text, _protobuf().ModelConfig())
    except text_format.ParseError as error:
        raise ArtifactError(where, " ".join(str(error).split()), "a model configuration of Triton") from error


def differences(one: Any, other: Any) -> list[str]:
    """Names of the fields in which two messages differ."""
    return [f.name for f in one.DESCRIPTOR.fields if getattr(one, f.name) != getattr(other, f.name)]


def batch_range(manifest: Manifest) -> tuple[int, int] | None:
    """Smallest and largest batch: the range of the outputs' first axis; None if they differ, or no input has it."""
    ranges = {_first_axis(tensor) for tensor in manifest.outputs}
    found = next(iter(ranges), None)
    if len(ranges) != 1 or found not in {_first_axis(tensor) for tensor in manifest.inputs}:
        return None
    return found


def shared_inputs(manifest: Manifest) -> frozenset[str]:
    """Names of the inputs without a batch axis: each is one for all images of a batch."""
    batch = batch_range(manifest)
    return frozenset(t.name for t in manifest.inputs if batch is None or _first_axis(t) != batch)


def _first_axis(tensor: Tensor) -> tuple[int, int] | None:
    shape = tensor.shape
    return (shape.min[0], shape.max[0]) if shape.min else None


def _largest_batch(manifest: Manifest, variant: str) -> int:
    """The largest batch that requests are merged to."""
    batch, shared = batch_range(manifest), shared_inputs(manifest)
    where, alone = "--dynamic-batching", "or leave it out: clients then send batches themselves."
    if batch is None:
        raise UsageError(where, "an engine without a batch axis", "one to merge requests on", "Leave it out.")
    if batch[0] != 1 or batch[1] == 1:
        got = f"an engine with batch {batch[0]}" + (" alone" if batch[0] == batch[1] else f" to {batch[1]}")
        raise UsageError(where, got, "a range of batches, from 1 on", f"Build it with --batch 1:2:4, {alone}")
    if shared and variant not in OURS:
        got = f"no batch axis in {', '.join(sorted(shared))}, which Triton's {variant} backend needs in every input"
        raise UsageError(where, got, "--variant python, which shares such inputs", f"Use it, {alone}")
    return batch[1]


def dims(tensor: Tensor) -> list[int]:
    """Sizes of an input or output of the manifest, -1 where the profile has a range."""
    return [a if a == b else -1 for a, b in zip(tensor.shape.min, tensor.shape.max, strict=True)]


def largest_bytes(manifest: Manifest) -> int:
    """Bytes of all inputs and outputs at the largest shapes: the most that one request can carry."""
    width = {"float32": 4, "int32": 4, "int64": 8, "int8": 1, "uint8": 1, "bool": 1}
    tensors = (*manifest.inputs, *manifest.outputs)
    return sum(math.prod(t.shape.max) * width.get(t.dtype, 2) for t in tensors)


def _describe_pipeline(config: Any, pb: Any) -> None:
    """A request for a picture; all but the prompt may be left out.

    Text is sent as bytes: with numpy 2, releases of the Python backend that were compiled for numpy 1 end at the first
    of Triton's own strings, which only the backend's conversions read (see dlpack).
    """
    for name in TEXTS:
        ragged = bool(config.max_batch_size)  # requests whose texts have other lengths are merged too
        config.input.add(
            name=name, data_type=pb.TYPE_UINT8, dims=[-1], optional=name != "prompt", allow_ragged_batch=ragged
        )
    for name, kind in NUMBERS.items():
        config.input.add(name=name, data_type=pb.DataType.Value(kind), dims=[1], optional=True)
    config.output.add(name=IMAGE, data_type=pb.TYPE_UINT8, dims=[-1, -1, 3])


def _describe_denoiser(config: Any, pb: Any, manifest: Manifest, serving: Serving) -> None:
    """The engine's inputs and outputs, and what to run at their opt shapes."""
    whole = (
        shared_inputs(manifest) if config.max_batch_size else {t.name for t in (*manifest.inputs, *manifest.outputs)}
    )
    for tensors, add in ((manifest.inputs, config.input.add), (manifest.outputs, config.output.add)):
        for tensor in tensors:
            _describe(add(), pb, tensor, whole)
    if serving.warm_up:
        _warm_up(config, pb, manifest, whole, runs=2 if serving.cuda_graphs else 1)  # a graph is captured by the second
    if serving.cuda_graphs:
        _replay_graphs(config, manifest, serving, whole)


def _describe(entry: Any, pb: Any, tensor: Tensor, whole: Container[str]) -> None:
    """Name, type and dims: all of them for the tensors in `whole`, for others those behind the batch axis."""
    entry.name = tensor.name
    if tensor.dtype not in DTYPES:
        raise ShapeError(f"'{tensor.name}'", tensor.dtype, f"one of {', '.join(DTYPES)}")
    entry.data_type = pb.DataType.Value(DTYPES[tensor.dtype])
    sizes = dims(tensor) if tensor.name in whole else dims(tensor)[1:]
    if not sizes:  # [batch], or a scalar: the backend gets no axis for the client's 1
        entry.reshape.SetInParent()
    entry.dims.extend(sizes or [1])


def _opt_sizes(tensor: Tensor, whole: Container[str]) -> list[int]:
    """Its dims in the config at the shape that the plan was tuned for."""
    sizes = list(tensor.shape.opt) if tensor.name in whole else list(tensor.shape.opt)[1:]
    return sizes or [1]


def _opt_batch(manifest: Manifest) -> int:
    return next(t.shape.opt[0] for t in manifest.outputs)


def _warm_up(config: Any, pb: Any, manifest: Manifest, whole: Container[str], runs: int) -> None:
    """Zeros at the opt shapes, before the model is ready."""
    batch = _opt_batch(manifest) if config.max_batch_size else 1  # 1 is Triton's word for none here
    sample = config.model_warmup.add(name="opt", batch_size=batch, count=runs)
    for tensor in manifest.inputs:
        entry = sample.inputs[tensor.name]
        entry.data_type = pb.DataType.Value(DTYPES[tensor.dtype])
        entry.dims.extend(_opt_sizes(tensor, whole))
        entry.zero_data = True


def _replay_graphs(config: Any, manifest: Manifest, serving: Serving, whole: Container[str]) -> None:
    if serving.device != "gpu" or serving.variant == "onnxruntime":
        got = f"--variant {serving.variant} --device {serving.device}"
        raise UsageError("--cuda-graphs", got, "TensorRT on a GPU: --variant python or tensorrt with --device gpu")
    if serving.variant == "python":  # any shape's second run is captured
        config.parameters[CUDA_GRAPHS].string_value = "1"
        return
    config.optimization.cuda.graphs = True
    spec = config.optimization.cuda.graph_spec.add(batch_size=_opt_batch(manifest) if config.max_batch_size else 0)
    for tensor in manifest.inputs:
        spec.input[tensor.name].dim.extend(_opt_sizes(tensor, whole))


def _protobuf() -> Any:
    with required_by("Triton's description of its configuration"):
        from tritonclient.grpc import model_config_pb2
    return model_config_pb2
