"""A complete manifest of no engine, for tests that need one to read."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from svdq_trt.artifact import manifest
from svdq_trt.artifact.manifest import Manifest

_COMPLETE: dict[str, Any] = {
    "model": "sdxl-tiny",
    "arch": "sm_89",
    "format": "int4",
    "rank": 32,
    "backend": {"name": "tensorrt-rtx", "version": "1"},
    "plugin": {"file": "p.so", "version": "1.0.0", "sha256": ""},
    "plan": {"file": "model.plan", "bytes": 4, "sha256": ""},
    "onnx": {"file": "model.onnx", "bytes": 1},
    "inputs": [],
    "outputs": [],
    "quantized": [],
    "kept_16bit": [],
    "fp16_weight_bytes": 0,
    "quantized_weight_bytes": 0,
    "accuracy": {},
    "device_memory_bytes": {},
    "timings_s": {},
    "peak_rss_bytes": {},
    "versions": {},
    "config": {},
}


def complete(**parts: Any) -> Manifest:
    """With `parts` instead of its own, as JSON's types."""
    return manifest.from_json(_COMPLETE | parts)


def write_manifest(folder: Path, **parts: Any) -> Path:
    """Write `complete` into an engine folder."""
    return manifest.write(folder, complete(**parts))


def change_manifest(folder: Path, **parts: Any) -> Path:
    """Replace parts of the manifest that is there."""
    return manifest.write(folder, manifest.from_json(manifest.to_json(manifest.read(folder)) | parts))


def file_entry(path: Path, **more: Any) -> dict[str, Any]:
    """A manifest's entry for a file."""
    content = path.read_bytes()
    return {"file": path.name, "bytes": len(content), "sha256": hashlib.sha256(content).hexdigest(), **more}


def tensor_entry(name: str, dtype: str, *sizes: tuple[int, int, int]) -> dict[str, Any]:
    """An input or output; `sizes`: (min, opt, max) of every dimension."""
    shape = {bound: [size[i] for size in sizes] for i, bound in enumerate(("min", "opt", "max"))}
    return {"name": name, "dtype": dtype, "shape": shape}


def quantized_entry(name: str, node: str) -> dict[str, Any]:
    """A linear in 4 bits."""
    sizes = {"format": "int4", "rank": 16, "K": 64, "N": 64}
    codes = {"activation": "", "act_unsigned": False, "act_shift": 0.0, "alpha": 0.5, "beta": 0.5, "sqnr_db": 20.0}
    return {"name": name, "node": node, **sizes, **codes}
