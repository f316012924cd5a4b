"""What a manifest says of LoRA slots and of ranks is checked: the slots' file is read by every run."""

from __future__ import annotations

import hashlib
import json

import pytest

from svdq_trt.artifact import manifest
from svdq_trt.base.errors import ArtifactError

FILE = "lora_slots.safetensors"


@pytest.fixture
def folder(tmp_path):
    for name, content in (("model.plan", b"plan"), (FILE, b"slots")):
        (tmp_path / name).write_bytes(content)
    entries = {
        name: {
            "file": name,
            "bytes": (tmp_path / name).stat().st_size,
            "sha256": hashlib.sha256((tmp_path / name).read_bytes()).hexdigest(),
        }
        for name in ("model.plan", FILE)
    }
    manifest.write(
        tmp_path,
        {
            "model": "sdxl-tiny",
            "arch": "sm_89",
            "format": "int4",
            "rank": 32,
            "backend": {},
            "inputs": [],
            "outputs": [],
            "plugin": {"file": "p.so", "version": "1.0.0", "sha256": ""},
            "plan": entries["model.plan"],
            "onnx": {"file": "model.onnx", "bytes": 1},
            "lora_slots": {**entries[FILE], "rank": 16, "inputs": 2},
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
        },
    )
    return tmp_path


def test_another_or_missing_file_is_refused(folder):
    manifest.verify(folder, parts=("plan",))
    (folder / FILE).write_bytes(b"slotz")
    with pytest.raises(ArtifactError, match=rf"{FILE}: another SHA-256"):
        manifest.verify(folder, parts=("plan",))
    (folder / FILE).unlink()
    with pytest.raises(ArtifactError, match=rf"{FILE}: missing"):
        manifest.verify(folder, parts=("plan",))


@pytest.mark.parametrize("entry", [{"file": FILE}, {"file": 1, "bytes": 1, "sha256": ""}, "x", [1]])
def test_a_malformed_entry_is_refused(folder, entry):
    data = json.loads((folder / manifest.NAME).read_text())
    (folder / manifest.NAME).write_text(json.dumps(data | {"lora_slots": entry}))
    with pytest.raises(ArtifactError, match="lora_slots"):
        manifest.read(folder)


def test_engines_without_slots_need_none(folder):
    data = json.loads((folder / manifest.NAME).read_text())
    for absent in ({}, None):
        (folder / manifest.NAME).write_text(json.dumps(data | {"lora_slots": absent}))
        manifest.verify(folder, parts=("plan",))


@pytest.mark.parametrize("entry", [{"bytes": 1}, {"bytes": 1, "error_db": 2.5, "gains": "", "kept": "x"}, "x", [1]])
def test_a_malformed_allocation_is_refused(folder, entry):
    data = json.loads((folder / manifest.NAME).read_text())
    (folder / manifest.NAME).write_text(json.dumps(data | {"allocation": entry}))
    with pytest.raises(ArtifactError, match="allocation"):
        manifest.read(folder)
