"""A manifest's entries on LoRA slots and ranks are checked: the slots' file is read by every run."""

from __future__ import annotations

import json

import pytest

from svdq_trt.artifact import manifest
from svdq_trt.base.errors import ArtifactError
from tests.harness.manifests import file_entry, write_manifest

FILE = "lora_slots.safetensors"


@pytest.fixture
def folder(tmp_path):
    for name, content in (("model.plan", b"plan"), (FILE, b"slots")):
        (tmp_path / name).write_bytes(content)
    write_manifest(
        tmp_path,
        plan=file_entry(tmp_path / "model.plan"),
        lora_slots=file_entry(tmp_path / FILE, rank=16, inputs=2),
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
