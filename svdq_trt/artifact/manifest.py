"""``manifest.json``: what an engine folder holds, and the checks before anything of it is trusted."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.files import atomic_write, read_json_object, sha256

NAME = "manifest.json"
VERSION = 1

#: every key of a complete manifest and its JSON type
_SCHEMA: dict[str, type] = {
    "version": int,
    "model": str,
    "arch": str,
    "format": str,
    "rank": int,
    "backend": dict,
    "plugin": dict,
    "plan": dict,
    "onnx": dict,
    "inputs": list,
    "outputs": list,
    "quantized": list,
    "kept_16bit": list,
    "fp16_weight_bytes": int,
    "quantized_weight_bytes": int,
    "accuracy": dict,
    "device_memory_bytes": dict,
    "timings_s": dict,
    "peak_rss_bytes": dict,
    "versions": dict,
    "config": dict,
}


#: keys of its parts that are read again
_PART_KEYS: dict[str, dict[str, type]] = {
    "plan": {"file": str, "bytes": int, "sha256": str},
    "onnx": {"file": str, "bytes": int},
    "plugin": {"file": str, "version": str, "sha256": str},
    "lora_slots": {"file": str, "bytes": int, "sha256": str},
    "allocation": {"bytes": int, "error_db": float, "gains": str, "kept": list},
}
#: absent of an incomplete build; of an engine without slots; of one rank for all
_OPTIONAL = ("plan", "lora_slots", "allocation")


@dataclass(frozen=True)
class TensorProfile:
    """One input or output of an engine.

    Attributes:
        name, dtype: as in the ONNX file. min, opt, max: shapes of the profile.
    """

    name: str
    dtype: str
    min: tuple[int, ...]
    opt: tuple[int, ...]
    max: tuple[int, ...]


def write(folder: Path, data: dict[str, Any]) -> Path:
    """Write the manifest of an engine folder."""
    path = folder / NAME
    with atomic_write(path) as tmp:
        tmp.write_text(json.dumps({"version": VERSION, **data}, indent=1, allow_nan=False) + "\n")
    return path


def read(folder: Path) -> dict[str, Any]:
    """Read and validate an engine folder's manifest.

    Raises:
        ArtifactError: missing, not JSON, another version, or a field missing or of another type.
    """
    path = folder / NAME
    data = read_json_object(path, "an engine manifest")
    if data.get("version") != VERSION:
        raise ArtifactError(str(path), f"version {data.get('version')!r}", str(VERSION), "Build the engine again.")
    for key, kind in _SCHEMA.items():
        if not isinstance(data.get(key), kind):
            got = "missing" if key not in data else f"a {type(data[key]).__name__}"
            raise ArtifactError(f"{path}: {key}", got, f"a {kind.__name__}", "Build the engine again.")
    _check_parts(path, data)
    return data


def _check_parts(path: Path, data: dict[str, Any]) -> None:
    """The fields that later steps rely on: arch, files, tensors."""

    def refuse(where: str, got: object, want: str) -> ArtifactError:
        return ArtifactError(f"{path}: {where}", repr(got), want, "Build the engine again.")

    if not re.fullmatch(r"sm_\d{2,3}", data["arch"]):
        raise refuse("arch", data["arch"], "sm_NN")
    for part, keys in _PART_KEYS.items():
        if part in _OPTIONAL and not data.get(part):
            continue
        if not isinstance(data[part], dict):
            raise refuse(part, data[part], "an object")
        for key, kind in keys.items():
            if not isinstance(data[part].get(key), kind):
                raise refuse(f"{part}.{key}", data[part].get(key), f"a {kind.__name__}")
    for tensor in [*data["inputs"], *data["outputs"]]:
        shape = tensor.get("shape") if isinstance(tensor, dict) else None
        ranges = [shape.get(bound) for bound in ("min", "opt", "max")] if isinstance(shape, dict) else []
        sizes = all(isinstance(r, list) and all(isinstance(d, int) for d in r) for r in ranges)
        if not ranges or not sizes or not isinstance(tensor.get("name"), str) or "dtype" not in tensor:
            raise refuse("inputs, outputs", tensor, "name, dtype and shape with min, opt, max")


def verify(
    folder: Path,
    arch: int | None = None,
    plugin_version: str | None = None,
    parts: Sequence[str] = ("plan", "onnx", "plugin"),
) -> dict[str, Any]:
    """Check an engine folder before its plan is used: manifest, arch, plugin version, file sizes and digests.

    Args:
        arch: the GPU it is for, 89 for sm_89; None accepts any.
        plugin_version: version of the plugin library at hand; None accepts any.
        parts: which of the folder's files must be there and agree.

    Raises:
        ArtifactError: what does not fit, with the command that mends it.
    """
    data = read(folder)
    again = f"Build it again: svdq-trt build --model {data['model']} --arch {data['arch']} --out {folder.parent}"
    if arch is not None and data["arch"] != f"sm_{arch}":
        raise ArtifactError(
            str(folder),
            f"a plan for {data['arch']}",
            f"one for sm_{arch}",
            f"svdq-trt build --model {data['model']} --arch sm_{arch}",
        )
    if plugin_version is not None and data["plugin"].get("version") != plugin_version:
        raise ArtifactError(
            str(folder), f"a plan of plugin version {data['plugin'].get('version')}", f"version {plugin_version}", again
        )
    if data.get("lora_slots") and "plan" in parts:  # what the plan reads beside the caller's inputs
        parts = (*parts, "lora_slots")
    for part in parts:
        if part == "plan" and not data[part]:
            raise no_plan(folder, data)
        _verify_file(folder, part, data[part], again)
    return data


def no_plan(folder: Path, data: dict[str, Any], backend: str = "auto") -> ArtifactError:
    """For an engine whose build ended before its plan; says where and how to finish it."""
    return ArtifactError(
        str(folder),
        "no plan yet (the build was incomplete)",
        "model.plan",
        f"On a machine with an {data['arch']} GPU and TensorRT: {finish_command(folder, backend)}",
    )


def finish_command(folder: Path, backend: str = "auto") -> str:
    """What builds an engine's plan from its model.onnx."""
    return f"svdq-trt finish {shlex.quote(str(folder))}" + ("" if backend == "auto" else f" --backend {backend}")


def _verify_file(folder: Path, part: str, entry: dict[str, Any], again: str) -> None:
    path = folder / Path(entry["file"]).name  # a name with folders in it leads nowhere else
    if not path.is_file():
        raise ArtifactError(str(path), "missing", "the file that the manifest names", again)
    data = path.with_name(f"{path.name}.data")
    size = path.stat().st_size + (data.stat().st_size if part == "onnx" and data.is_file() else 0)
    if size != entry.get("bytes", size):
        raise ArtifactError(str(path), f"{size} bytes", f"{entry['bytes']} bytes", again)
    if part == "onnx":  # read by tools that check what they read; gigabytes, so not digested
        return
    if sha256(path) != entry["sha256"]:
        raise ArtifactError(str(path), "another SHA-256 than the manifest's", entry["sha256"], again)
