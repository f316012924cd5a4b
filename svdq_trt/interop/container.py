"""Opening a foreign checkpoint: finding its files, the tool that wrote them, and the JSON in their headers, checked."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from svdq_trt.artifact import manifest
from svdq_trt.base.errors import ArtifactError, UnsupportedError
from svdq_trt.base.files import parse_json, read_json_object, sha256
from svdq_trt.checkpoint.declared import described, method_of
from svdq_trt.checkpoint.locate import locate
from svdq_trt.interop.reader import Reader
from svdq_trt.models import ModelSpec

NUNCHAKU, MODELOPT, OWN = "nunchaku", "modelopt", "svdq-trt"
OWN_NAME = "svdq.safetensors"
_FOLDER = ("transformer_blocks.safetensors", "unquantized_layers.safetensors")  # nunchaku's older container
_JSON_MAX = 64 << 20
#: files beside a checkpoint that may say how it was quantized; also their keys in a reader's metadata
_BESIDE = ("quantization_config.json", "quant_config.json")
#: metadata keys of other tools' quantized files, whatever their value
_MARKS = {
    "cache_dit_svdq_ptq": "a file of cache-dit",
    "runtime_manifest": "a file of Nunchaku Lite",
}
_COMFY = ".comfy_quant"  # a tensor beside each layer that ComfyUI has quantized


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
    if not path.exists():
        raise ArtifactError(str(path), "does not exist", "a quantized checkpoint: a .safetensors file or a folder")
    source = locate(spec, str(path))
    folder = source.files[0].parent
    beside = {name: folder / name for name in _BESIDE}
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
    h = hashlib.sha256(spec.name.encode())
    for file in (*files, *beside.values()):
        h.update(bytes.fromhex(sha256(file)))
    return f"sha256:{h.hexdigest()}"


def kind_of(reader: Reader) -> str:
    """The tool that wrote the checkpoint.

    Raises:
        ArtifactError: an unknown one. UnsupportedError: one whose files are not read, by the name that the file gives.
    """
    if "svdq" in reader.metadata:
        return OWN
    kind = _by_tensors(reader)
    for where, method in _declared(reader):
        if method not in _DECLARED[kind]:
            raise UnsupportedError(where, f"quantized by {described(method)}", _READ, _CONVERT)
    if kind is None:
        raise ArtifactError(
            str(reader.where),
            "no tensor of a known quantized format",
            _READ,
            "Give an unquantized one with --checkpoint.",
        )
    return kind


_READ = "a checkpoint of nunchaku, ModelOpt (NVFP4_SVD) or svdq-trt"
_CONVERT = "Use the original file of nunchaku or ModelOpt, or quantize here with --checkpoint."
#: methods that a file of each tool may give for itself in a `quantization_config`
_DECLARED = {None: ("",), NUNCHAKU: ("",), MODELOPT: ("", "modelopt", "NVFP4_SVD")}


def _declared(reader: Reader) -> Iterator[tuple[str, str]]:
    """(where, method) of everything that says how the checkpoint was quantized.

    The header's own `quantization_config` is nunchaku's, whose keys are others: nunchaku_import.py compares it.
    """
    for key in ("config", "config.json"):
        where = f"{reader.where}: {key}: quantization_config"
        yield where, method_of(header_object(reader, key).get("quantization_config"), where)
    for key in _BESIDE:
        if found := header_object(reader, key):
            yield f"{reader.where}: {key}", method_of(found, key)
    own = header_object(reader, "quantization_config")
    if any(key in own for key in ("quant_method", "quant_type")):
        where = f"{reader.where}: metadata 'quantization_config'"
        yield where, method_of(own, where)


def _by_tensors(reader: Reader) -> str | None:
    for key, what in _MARKS.items():
        if key in reader.metadata:
            raise UnsupportedError(f"{reader.where}: metadata '{key}'", what, _READ, _CONVERT)
    if marked := next((name for name in reader.names if name.endswith(_COMFY)), ""):
        raise UnsupportedError(f"{reader.where}: '{marked}'", "a file of ComfyUI", _READ, _CONVERT)
    if any(name.endswith((".wscales", ".wzeros")) for name in reader.names):
        return NUNCHAKU
    if any(name.endswith(".weight_scale") for name in reader.names):
        return MODELOPT
    return None


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
