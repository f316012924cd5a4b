"""``manifest.json``: the contents of an engine folder, and the checks before any of them is trusted.

The schema is the class Manifest: writing, reading and the list in ``svdq-trt verify --help`` all follow it.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec

from svdq_trt.artifact.entry import COUNT, DIGEST, Entry, FileEntry, check_dtype, check_shapes
from svdq_trt.artifact.entry import says as _says
from svdq_trt.artifact.graph_entries import BackendEntry, OnnxEntry, PlanEntry, PluginEntry
from svdq_trt.artifact.held import Held
from svdq_trt.artifact.misfit import AGAIN, misfit
from svdq_trt.artifact.options import Options
from svdq_trt.artifact.origin import OriginEntry
from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.files import atomic_write, read_json_object

NAME = "manifest.json"
VERSION = 1


@dataclass(frozen=True)
class TensorProfile:
    """One input or output of an engine, with its range.

    Attributes:
        name, dtype: as in the ONNX file. min, opt, max: shapes of the optimization profile.
        axes: what each size follows from, as in the ONNX file; "" for a fixed one, () where nothing is known.
    """

    name: str
    dtype: str
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]
    axes: tuple[str, ...] = ()


class ShapeRange(Entry, frozen=True):
    """The shapes of one tensor in the optimization profile."""

    min: Annotated[tuple[int, ...], _says("the smallest")]
    opt: Annotated[tuple[int, ...], _says("what TensorRT tunes for")]
    max: Annotated[tuple[int, ...], _says("the largest")]

    def __post_init__(self) -> None:
        check_shapes(self.min, self.opt, self.max)


class Tensor(Entry, frozen=True):
    """An input or output."""

    name: Annotated[str, _says("as in the ONNX file")]
    dtype: Annotated[str, _says("as in the ONNX file: float16, int64")]
    shape: Annotated[ShapeRange, _says("its range")]
    axes: Annotated[
        tuple[str, ...], _says("what each size follows from: batch, 4*height for multiples of 4, empty for a fixed one")
    ] = ()

    def __post_init__(self) -> None:
        if self.axes and len(self.axes) != len(self.shape.min):
            raise ValueError(f"{len(self.axes)} axes of {len(self.shape.min)} dimensions")
        check_dtype(self.dtype)

    @classmethod
    def of(cls, profile: TensorProfile) -> Tensor:
        """The entry of a profile."""
        return cls(
            name=profile.name,
            dtype=profile.dtype,
            shape=ShapeRange(min=profile.min, opt=profile.opt, max=profile.max),
            axes=profile.axes,
        )

    @property
    def profile(self) -> TensorProfile:
        """The profile of an entry."""
        return TensorProfile(self.name, self.dtype, self.shape.min, self.shape.opt, self.shape.max, self.axes)


class AllocationEntry(Entry, frozen=True, kw_only=True):
    """What ``--rank auto`` was asked for and chose."""

    budget_bytes: Annotated[int | None, _says("asked for, or null")] = None
    target_sqnr: Annotated[float | None, _says("asked for in dB, or null")] = None
    gains: Annotated[str, _says("the scan file that weighed the nodes; empty for equal weights")]
    bytes: Annotated[int, _says("of all nodes, those kept in 16 bit included")]
    error_db: Annotated[float, _says("predicted SQNR: of the output with a scan, else of the nodes on average")]
    kept: Annotated[tuple[str, ...], _says("nodes whose linears stay in 16 bit")]


class QuantizedEntry(Entry, frozen=True, kw_only=True):
    """One original linear in 4 bits; linears of one node share its figures."""

    name: Annotated[str, _says("the linear in the original model")]
    node: Annotated[str, _says("the node that has it")]
    format: Annotated[str, _says("w4a8, int4, ...")]
    rank: Annotated[int, _says("of the node's 16-bit branch, LoRAs included")]
    k: Annotated[int, _says("inputs")] = msgspec.field(name="K")
    n: Annotated[int, _says("outputs of this linear")] = msgspec.field(name="N")
    activation: Annotated[str, _says("what the node applies to its output: Gelu, ...; empty for nothing")]
    act_unsigned: Annotated[bool, _says("activation codes have no sign")] = False
    act_shift: Annotated[float, _says("added to activations before they are quantized")] = 0.0
    alpha: Annotated[float, _says("smoothing exponent of the activations")]
    beta: Annotated[float, _says("smoothing exponent of the weights")]
    sqnr_db: Annotated[float | None, _says("of the node's output on calibration tokens; null where unknown")]


class LeftOut(Entry, frozen=True):
    """A layer that is not what one might expect."""

    name: Annotated[str, _says("the layer")]
    reason: Annotated[str, _says("why")]


class CutEntry(Entry, frozen=True):
    """A node whose LoRAs were cut to a lower rank."""

    node: Annotated[str, _says("the node")]
    rank: Annotated[int, _says("what it has now")]
    error: Annotated[float, _says("relative error of the LoRAs' change")]


class LoraEntry(Entry, frozen=True):
    """A LoRA inside the engine."""

    file: Annotated[str, _says("its name")]
    sha256: Annotated[str, _says("its digest")]
    strength: Annotated[float, _says("what it was multiplied by")]
    quantized_layers: Annotated[tuple[str, ...], _says("layers it changed in the 16-bit branch")]
    dense_layers: Annotated[tuple[str, ...], _says("16-bit layers it was added to")]
    text_encoder_tensors: Annotated[int, _says("tensors that are the pipeline's to apply")]
    left_out: Annotated[tuple[LeftOut, ...], _says("layers it names that this model lacks or that cannot take it")]
    cut: Annotated[
        tuple[CutEntry, ...], _says("nodes that got best factors: of a full matrix, or of too large a rank")
    ] = ()


class SlotsEntry(Entry, frozen=True):
    """The file that fills the graph's LoRA inputs."""

    file: Annotated[str, _says("its name in the folder")]
    bytes: Annotated[int, _says("its size", **COUNT)]
    sha256: Annotated[str, _says("its digest", **DIGEST)]
    rank: Annotated[int, _says("reserved for each linear")] = 0
    inputs: Annotated[int, _says("number of inputs it fills")] = 0


class OutputEntry(Entry, frozen=True, omit_defaults=True):
    """Accuracy of one output."""

    name: Annotated[str, _says("the output")]
    sqnr_db: Annotated[float, _says("signal to quantization noise of all inputs together, dB")]
    cosine: Annotated[float, _says("cosine similarity")]
    max_abs: Annotated[float, _says("largest absolute difference")]
    ref_max_abs: Annotated[float, _says("largest absolute value of the reference")]
    each_db: Annotated[tuple[float, ...], _says("sqnr_db of each input by itself")] = ()

    @property
    def spread(self) -> str:
        """How far single inputs differ, in words: ``4 inputs, 20.1 to 22.9 dB``; "" where they are not known."""
        if not self.each_db:
            return ""
        count = len(self.each_db)
        return f"{count} input{'s' * (count > 1)}, {min(self.each_db):.1f} to {max(self.each_db):.1f} dB"


class AccuracyEntry(Entry, frozen=True, omit_defaults=True):
    """The check of the quantized model."""

    against: Annotated[str, _says("what it was compared with")]
    sizes: Annotated[dict[str, int], _says("of each input: batch, height, width, tokens, frames, images")]
    seed: Annotated[int, _says("of the first input, where they are synthetic")]
    mean_layer_sqnr_db: Annotated[float | None, _says("mean over the nodes; null where unknown")]
    outputs: Annotated[tuple[OutputEntry, ...], _says("the figures")]
    plot: Annotated[str, _says("picture of them in the folder")]
    plot_sha256: Annotated[str, _says("its digest", **DIGEST)] = ""
    inputs: Annotated[int, _says("number of inputs: of several steps, each with a seed of its own")] = 1
    recorded: Annotated[bool, _says("the inputs are calibration's own, rather than synthetic")] = False


class Manifest(Entry, frozen=True, kw_only=True):
    """All of manifest.json."""

    version: Annotated[int, _says("of this schema")] = VERSION
    model: Annotated[str, _says("name of the model, as svdq-trt models lists it")]
    description: Annotated[str, _says("of a model that has no name there, as JSON; empty for the others")] = ""
    arch: Annotated[str, _says("the GPU it is for: sm_89")]
    format: Annotated[str, _says("of the quantized linears")]
    rank: Annotated[int, _says("of the 16-bit branch, the largest of all nodes")]
    backend: Annotated[BackendEntry | None, _says("the TensorRT that wrote the plan")]
    plugin: Annotated[PluginEntry | None, _says("the plugin library beside the plan; none where no node is its")]
    plan: Annotated[PlanEntry | None, _says("the plan; none while it is missing")]
    incomplete: Annotated[str, _says("why the plan is missing")] = ""
    onnx: Annotated[OnnxEntry, _says("the graph that the plan was built from")]
    artifact: Annotated[FileEntry | None, _says("the quantized model that the graph was exported from")] = None
    inputs: Annotated[tuple[Tensor, ...], _says("what it takes, without the inputs that LoRA slots fill")]
    outputs: Annotated[tuple[Tensor, ...], _says("what it returns")]
    allocation: Annotated[AllocationEntry | None, _says("the choice of --rank auto")] = None
    quantized: Annotated[tuple[QuantizedEntry, ...], _says("every original linear in 4 bits")]
    loras: Annotated[tuple[LoraEntry, ...], _says("LoRAs built in")] = ()
    lora_slots: Annotated[SlotsEntry | None, _says("LoRA slots")] = None
    plugin_layers: Annotated[tuple[str, ...], _says("nodes that became layers of the plugin")] = ()
    attention: Annotated[
        Literal["plugin", "tensorrt"], _says("whose it is: plugin where any attention is a layer of the plugin")
    ] = "tensorrt"
    kept_16bit: Annotated[tuple[LeftOut, ...], _says("layers that were not quantized, and why")]
    fp16_weight_bytes: Annotated[int, _says("weights of the original in 16 bit", **COUNT)]
    quantized_weight_bytes: Annotated[int, _says("weights of this model", **COUNT)]
    accuracy: Annotated[AccuracyEntry | None, _says("the check against 16 bit; none where it was not made")]
    device_memory_bytes: Annotated[
        dict[str, int | None], _says("weights, activations: as TensorRT states them, or null")
    ]
    timings_s: Annotated[dict[str, float], _says("seconds of each stage")]
    peak_rss_bytes: Annotated[dict[str, int], _says("largest host memory of each stage")]
    versions: Annotated[dict[str, str], _says("of Python and the packages that built it")]
    config: Annotated[dict[str, Any], _says("the options of the build")]
    origin: Annotated[OriginEntry | None, _says("what it was made from, by what, and when")] = None

    @property
    def source(self) -> str:
        """What `get_model` knows the model by."""
        return self.description or self.model

    @property
    def options(self) -> Options:
        """Those options of the build that readers need."""
        return msgspec.convert(self.config, Options)


#: parts that are written as {} when they are absent
_ABSENT = ("backend", "plugin", "plan", "artifact", "allocation", "lora_slots", "accuracy", "origin")
#: parts that name files
PARTS = ("plan", "onnx", "plugin", "artifact", "lora_slots", "accuracy")


def to_json(data: Entry) -> dict[str, Any]:
    """A manifest or one of its entries as JSON's types."""
    found: dict[str, Any] = msgspec.to_builtins(data)
    return found | {part: {} for part in _ABSENT if isinstance(data, Manifest) and found[part] is None}


def from_json(data: dict[str, Any], where: str = NAME) -> Manifest:
    """Rebuild the manifest from `data`; `where` names the file in errors.

    Raises:
        ArtifactError: another version, or a field that is missing, of another type, or of a value that no build writes.
    """
    if data.get("version", VERSION) != VERSION:
        raise ArtifactError(where, f"version {data['version']!r}", str(VERSION), AGAIN)
    data = {key: None if key in _ABSENT and value == {} else value for key, value in data.items()}
    try:
        found = msgspec.convert(data, Manifest)
    except msgspec.ValidationError as error:
        raise misfit(where, str(error)) from None
    try:
        _ = found.options
    except msgspec.ValidationError as error:
        raise misfit(f"{where}: config", str(error)) from None
    if not re.fullmatch(r"sm_\d{2,3}", found.arch):
        raise ArtifactError(f"{where}: arch", repr(found.arch), "sm_NN", AGAIN)
    return found


def write(folder: Path, data: Manifest) -> Path:
    """Write the manifest of an engine folder."""
    path = folder / NAME
    with atomic_write(path) as tmp:
        tmp.write_text(json.dumps(to_json(data), indent=1, allow_nan=False) + "\n")
    return path


def read(folder: Path) -> Manifest:
    """Read and validate an engine folder's manifest.

    Raises:
        ArtifactError: missing, not JSON, another version, or a field missing or of another type.
    """
    path = folder / NAME
    return from_json({"version": None} | read_json_object(path, "an engine manifest"), str(path))


def verify(
    folder: Path,
    arch: int | None = None,
    plugin_version: str | None = None,
    parts: Sequence[str] = ("plan", "onnx", "plugin"),
) -> Manifest:
    """Check an engine folder before its plan is used: manifest, arch, plugin version, file sizes and digests.

    Args:
        arch: the GPU to run on, 89 for sm_89; None accepts any.
        plugin_version: version of the plugin library to run with; None accepts any.
        parts: those of the folder's files that must exist and match.

    Raises:
        ArtifactError: something does not match; names the command that mends it.
    """
    data = read(folder)
    again = f"Copy the whole engine folder again, or build it again: {_build_command(folder, data, data.arch)}"
    if arch is not None and data.arch != f"sm_{arch}":
        raise ArtifactError(
            str(folder),
            f"a plan for {data.arch}",
            f"one for sm_{arch}",
            _build_command(folder, data, f"sm_{arch}"),
        )
    if plugin_version is not None and data.plugin is not None and data.plugin.version != plugin_version:
        raise ArtifactError(
            str(folder), f"a plan of plugin version {data.plugin.version}", f"version {plugin_version}", again
        )
    if "plan" in parts and "lora_slots" not in parts:  # read by the session besides the plan
        parts = (*parts, "lora_slots")
    for part in parts:
        entry = getattr(data, part)
        if part == "plan" and entry is None:
            raise no_plan(folder, data)
        for file in files_of(entry):
            file.check(folder, again)
    return data


def no_plan(folder: Path, data: Manifest, backend: str = "auto") -> ArtifactError:
    """The error for an engine without a plan; says where and how to finish its build."""
    return ArtifactError(
        str(folder),
        "no plan yet (the build was incomplete)",
        "model.plan",
        f"On a machine with an {data.arch} GPU and TensorRT: {finish_command(folder, backend)}",
    )


def _build_command(folder: Path, data: Manifest, arch: str) -> str:
    """The command that builds an engine again, of a pipeline's part with the whole pipeline."""
    model, pipeline = data.config.get("model") or data.model, data.config.get("pipeline")
    where = ["--pipeline", str(pipeline)] if pipeline else ["--out", str(folder.parent)]
    return shlex.join(["svdq-trt", "build", "--model", str(model), "--arch", arch, *where])


def finish_command(folder: Path, backend: str = "auto") -> str:
    """The command that builds an engine's plan from its model.onnx."""
    return f"svdq-trt finish {shlex.quote(str(folder))}" + ("" if backend == "auto" else f" --backend {backend}")


def files_of(entry: Any) -> list[Held]:
    """The files that a part of the manifest names; none where it is absent."""
    if entry is None:
        return []
    if isinstance(entry, AccuracyEntry):
        return [Held(entry.plot, None, entry.plot_sha256)] if entry.plot_sha256 else []
    if isinstance(entry, PluginEntry):
        return [Held(entry.file, None, entry.sha256)]
    if isinstance(entry, PlanEntry) and entry.pieces:
        return [held for piece in entry.pieces for held in files_of(piece)]
    if isinstance(entry, OnnxEntry) and entry.data is not None:
        graph = Held(entry.file, entry.bytes - entry.data.bytes, entry.sha256)
        return [graph, *(held for file in (entry.data, *entry.pieces) for held in files_of(file))]
    if isinstance(entry, OnnxEntry):  # of an earlier release: the size of both
        return [Held(entry.file, entry.bytes, None, with_data=True)]
    chunks = entry.chunks if isinstance(entry, PlanEntry | FileEntry) else ()
    return [Held(entry.file, entry.bytes, entry.sha256, chunks)]
