"""Opening a foreign checkpoint: finding its files, and the JSON in their headers, checked."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from svdq_trt.artifact import manifest
from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.files import parse_json, read_json_object, sha256
from svdq_trt.checkpoint.locate import locate
from svdq_trt.interop.reader import Reader
from svdq_trt.models import ModelSpec

HINTS = "svdq_trt"  # our own key in the metadata of files we write
OWN_NAME = "svdq.safetensors"
_FOLDER = ("transformer_blocks.safetensors", "unquantized_layers.safetensors")  # nunchaku's older container
_JSON_MAX = 64 << 20
#: files beside a checkpoint that may say how it was quantized; also their keys in a reader's metadata
BESIDE = ("quantization_config.json", "quant_config.json")


def files_of(spec: ModelSpec, path: Path) -> tuple[tuple[Path, ...], dict[str, Path]]:
    """The .safetensors files of a checkpoint, and JSON files beside them by their metadata key.

    A .safetensors file, an engine's folder, nunchaku's older folder, or a diffusers folder. A config.json beside a
    single file need not be its own, so it has another key than that of a folder.

    Raises:
        ArtifactError: none of these.
    """
    files = tuple(path / name for name in _FOLDER)
    if (path / OWN_NAME).is_file():
        if other := next((file for file in files if file.is_file()), None):
            got = f"both {OWN_NAME} and {other.name}"
            raise ArtifactError(str(path), got, "one quantized checkpoint", "Name the file that you mean.")
        return (path / OWN_NAME,), {}
    if path.is_dir() and any(file.is_file() for file in files):
        for file in files:
            if not file.is_file():
                raise ArtifactError(str(file), "missing", "both files of nunchaku's folder")
        beside = {name: path / f"{name}.json" for name in ("config", "comfy_config")}
        return files, {name: file for name, file in beside.items() if file.is_file()}
    if (beside_it := path / "quant_config.json").is_file() and not (path / "config.json").is_file():
        name = read_json_object(beside_it, "cache-dit's quant_config").get("checkpoint_path")
        if not isinstance(name, str) or Path(name).name != name or not (path / name).is_file():
            raise ArtifactError(str(beside_it), f"checkpoint_path {name!r:.60}", "a file in the same folder")
        return (path / name,), {beside_it.name: beside_it}
    if not path.exists():
        raise ArtifactError(str(path), "does not exist", "a quantized checkpoint: a .safetensors file or a folder")
    source = locate(spec, str(path))
    folder = source.files[0].parent
    beside = {name: folder / name for name in BESIDE}
    beside |= {"config.json": folder / "config.json"} if source.config is None else {"config": source.config}
    return source.files, {name: file for name, file in beside.items() if file.is_file()}


def open_reader(spec: ModelSpec, path: Path) -> Reader:
    """Open all tensors of a checkpoint; config files appear in `metadata` as if they were in the header.

    Raises:
        ArtifactError: nothing there can be read.
    """
    files, beside = files_of(spec, path)
    reader = Reader(path, files)
    for key, file in beside.items():
        reader.metadata[key] = json.dumps(read_json_object(file, "a model config"))
    return reader


def check_engine(path: Path) -> None:
    """Check the quantized model of an engine folder against its manifest. Raises ArtifactError: damaged."""
    if (path / manifest.NAME).is_file():
        manifest.verify(path, parts=("artifact",))


def digest(path: Path, spec: ModelSpec) -> str:
    """``sha256:<hex>`` of a quantized checkpoint and the model it is for. Raises ArtifactError: unreadable."""
    check_engine(path)
    files, beside = files_of(spec, path)
    h = hashlib.sha256(spec.weights.encode())
    for file in (*files, *beside.values()):
        h.update(bytes.fromhex(sha256(file)))
    return f"sha256:{h.hexdigest()}"


def header_object(reader: Reader, key: str) -> dict[str, Any]:
    """The JSON object under a metadata key; {} where there is none. Raises ArtifactError: not a JSON object."""
    text = reader.metadata.get(key, "")
    where = f"{reader.where}: metadata '{key}'"
    if not text:
        return {}
    if len(text) > _JSON_MAX:
        raise ArtifactError(where, f"{len(text)} bytes", f"at most {_JSON_MAX}")
    try:
        value = parse_json(text)
    except ValueError:
        raise ArtifactError(where, "not valid JSON", "a JSON object") from None
    if not isinstance(value, dict):
        raise ArtifactError(where, f"a JSON {type(value).__name__}", "a JSON object")
    return value


def hints_of(reader: Reader, of: str = "layers") -> dict[str, dict[str, Any]]:
    """What the tensors of a file that this tool wrote could not hold, by layer or by node; nonsense is passed over."""
    found = header_object(reader, HINTS).get(of)
    known = found if isinstance(found, dict) else {}
    return {name: hints for name, hints in known.items() if isinstance(hints, dict)}
