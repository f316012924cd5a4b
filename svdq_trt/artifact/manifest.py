"""``manifest.json``: what an engine folder holds, and the checks before anything of it is trusted.

The schema is the class Manifest: what is written, what is read and what ``svdq-trt verify --help`` lists come from it.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.files import atomic_write, read_json_object, sha256

NAME = "manifest.json"
VERSION = 1
_AGAIN = "Build the engine again."


@dataclass(frozen=True)
class TensorProfile:
    """One input or output of an engine, with its range.

    Attributes:
        name, dtype: as in the ONNX file. min, opt, max: shapes of the optimization profile.
    """

    name: str
    dtype: str
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


class Entry(msgspec.Struct, frozen=True):
    """An object of the manifest; what a newer release adds to it is passed over."""


class ShapeRange(Entry):
    """The shapes of one tensor in the optimization profile."""

    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


class Tensor(Entry):
    """An input or output."""

    name: str
    dtype: str
    shape: ShapeRange

    @classmethod
    def of(cls, profile: TensorProfile) -> Tensor:
        """The entry of a profile."""
        return cls(
            name=profile.name,
            dtype=profile.dtype,
            shape=ShapeRange(min=profile.min, opt=profile.opt, max=profile.max),
        )

    @property
    def profile(self) -> TensorProfile:
        """The profile of an entry."""
        return TensorProfile(self.name, self.dtype, self.shape.min, self.shape.opt, self.shape.max)


class BackendEntry(Entry):
    """The TensorRT that wrote the plan."""

    name: str
    version: str


class PluginEntry(Entry):
    """The plugin library beside the plan; `embedded`: the plan carries it as well."""

    file: str
    version: str
    sha256: str
    embedded: bool = False


class PlanEntry(Entry):
    """model.plan."""

    file: str
    bytes: int
    sha256: str


class OnnxEntry(Entry):
    """model.onnx; `bytes` counts its external data too."""

    file: str
    bytes: int


class AllocationEntry(Entry, kw_only=True):
    """What ``--rank auto`` was asked for and chose; see artifact/allocation.py."""

    budget_bytes: int | None = None
    target_sqnr: float | None = None
    gains: str
    bytes: int
    error_db: float
    kept: tuple[str, ...]


class QuantizedEntry(Entry):
    """One original linear in 4 bits; linears of one node share its figures. `sqnr_db`: None where unknown."""

    name: str
    node: str
    format: str
    rank: int
    k: int = msgspec.field(name="K")
    n: int = msgspec.field(name="N")
    activation: str
    act_unsigned: bool
    act_shift: float
    alpha: float
    beta: float
    sqnr_db: float | None


class LeftOut(Entry):
    """A layer, and why it is not what one might expect: kept in 16 bit, or left out of a LoRA."""

    name: str
    reason: str


class CutEntry(Entry):
    """A node whose LoRA was cut to a rank, and the relative error of that."""

    node: str
    rank: int
    error: float


class LoraEntry(Entry):
    """A LoRA inside the engine: identity, strength, what it changed and what was left out."""

    file: str
    sha256: str
    strength: float
    quantized_layers: tuple[str, ...]
    dense_layers: tuple[str, ...]
    text_encoder_tensors: int
    left_out: tuple[LeftOut, ...]
    cut: tuple[CutEntry, ...] = ()


class SlotsEntry(Entry):
    """The file that fills the graph's LoRA inputs."""

    file: str
    bytes: int
    sha256: str
    rank: int = 0
    inputs: int = 0


class OutputEntry(Entry):
    """Accuracy of one output: SQNR in dB, cosine similarity, largest absolute difference, the reference's absmax."""

    name: str
    sqnr_db: float
    cosine: float
    max_abs: float
    ref_max_abs: float


class AccuracyEntry(Entry):
    """The check: what it compared with, on which input, and the figures."""

    against: str
    sizes: dict[str, int]
    seed: int
    mean_layer_sqnr_db: float | None
    outputs: tuple[OutputEntry, ...]
    plot: str


class Manifest(Entry, kw_only=True):
    """All of manifest.json.

    Attributes:
        model, arch, format, rank: what was built; arch as "sm_89", rank the largest of all nodes.
        plan: None while it is missing; `incomplete` then says why.
        allocation: None without ``--rank auto``. lora_slots: None without slots. accuracy: None without the check.
        plugin_layers: nodes that became layers of the plugin. kept_16bit: layers that were not quantized.
        device_memory_bytes: "weights" and "activations", as TensorRT states them; None where it does not.
        timings_s, peak_rss_bytes: of each stage. config: the options of the build.
    """

    version: int = VERSION
    model: str
    arch: str
    format: str
    rank: int
    backend: BackendEntry | None
    plugin: PluginEntry
    plan: PlanEntry | None
    incomplete: str = ""
    onnx: OnnxEntry
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    allocation: AllocationEntry | None = None
    quantized: tuple[QuantizedEntry, ...]
    loras: tuple[LoraEntry, ...] = ()
    lora_slots: SlotsEntry | None = None
    plugin_layers: tuple[str, ...] = ()
    kept_16bit: tuple[LeftOut, ...]
    fp16_weight_bytes: int
    quantized_weight_bytes: int
    accuracy: AccuracyEntry | None
    device_memory_bytes: dict[str, int | None]
    timings_s: dict[str, float]
    peak_rss_bytes: dict[str, int]
    versions: dict[str, str]
    config: dict[str, Any]


#: parts that are written as {} where there are none
_ABSENT = ("backend", "plan", "allocation", "lora_slots", "accuracy")


def to_json(data: Manifest) -> dict[str, Any]:
    """The manifest as JSON's types."""
    found: dict[str, Any] = msgspec.to_builtins(data)
    return found | {part: {} for part in _ABSENT if found[part] is None}


def from_json(data: dict[str, Any], where: str = NAME) -> Manifest:
    """The manifest that `data` is; `where` names the file in errors.

    Raises:
        ArtifactError: another version, or a field missing, of another type, or of a value that no build writes.
    """
    if data.get("version", VERSION) != VERSION:
        raise ArtifactError(where, f"version {data['version']!r}", str(VERSION), _AGAIN)
    data = {key: None if key in _ABSENT and value == {} else value for key, value in data.items()}
    try:
        found = msgspec.convert(data, Manifest)
    except msgspec.ValidationError as error:
        reason, _, place = str(error).partition(" - at ")
        field = re.sub(r"^`\$\.?|`$", "", place)
        raise ArtifactError(f"{where}: {field}" if field else where, reason, "a manifest of ours", _AGAIN) from None
    if not re.fullmatch(r"sm_\d{2,3}", found.arch):
        raise ArtifactError(f"{where}: arch", repr(found.arch), "sm_NN", _AGAIN)
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
        arch: the GPU it is for, 89 for sm_89; None accepts any.
        plugin_version: version of the plugin library at hand; None accepts any.
        parts: which of the folder's files must be there and agree.

    Raises:
        ArtifactError: what does not fit, with the command that mends it.
    """
    data = read(folder)
    again = f"Build it again: svdq-trt build --model {data.model} --arch {data.arch} --out {folder.parent}"
    if arch is not None and data.arch != f"sm_{arch}":
        raise ArtifactError(
            str(folder),
            f"a plan for {data.arch}",
            f"one for sm_{arch}",
            f"svdq-trt build --model {data.model} --arch sm_{arch}",
        )
    if plugin_version is not None and data.plugin.version != plugin_version:
        raise ArtifactError(
            str(folder), f"a plan of plugin version {data.plugin.version}", f"version {plugin_version}", again
        )
    if data.lora_slots and "plan" in parts:  # what the plan reads beside the caller's inputs
        parts = (*parts, "lora_slots")
    for part in parts:
        entry = getattr(data, part)
        if part == "plan" and entry is None:
            raise no_plan(folder, data)
        _verify_file(folder, entry, again)
    return data


def no_plan(folder: Path, data: Manifest, backend: str = "auto") -> ArtifactError:
    """For an engine whose build ended before its plan; says where and how to finish it."""
    return ArtifactError(
        str(folder),
        "no plan yet (the build was incomplete)",
        "model.plan",
        f"On a machine with an {data.arch} GPU and TensorRT: {finish_command(folder, backend)}",
    )


def finish_command(folder: Path, backend: str = "auto") -> str:
    """What builds an engine's plan from its model.onnx."""
    return f"svdq-trt finish {shlex.quote(str(folder))}" + ("" if backend == "auto" else f" --backend {backend}")


def _verify_file(folder: Path, entry: PlanEntry | OnnxEntry | PluginEntry | SlotsEntry, again: str) -> None:
    path = folder / Path(entry.file).name  # a name with folders in it leads nowhere else
    if not path.is_file():
        raise ArtifactError(str(path), "missing", "the file that the manifest names", again)
    size = path.stat().st_size
    if isinstance(entry, OnnxEntry):
        external = path.with_name(f"{path.name}.data")
        size += external.stat().st_size if external.is_file() else 0
    if not isinstance(entry, PluginEntry) and size != entry.bytes:
        raise ArtifactError(str(path), f"{size} bytes", f"{entry.bytes} bytes", again)
    if isinstance(entry, OnnxEntry):  # read by tools that check what they read; gigabytes, so not digested
        return
    if sha256(path) != entry.sha256:
        raise ArtifactError(str(path), "another SHA-256 than the manifest's", entry.sha256, again)
