"""Which file of a folder is the quantized checkpoint, and that an engine's is the one its manifest names."""

from __future__ import annotations

import pytest

from svdq_trt.base.errors import ArtifactError
from svdq_trt.interop import convert
from svdq_trt.interop.container import digest
from tests.cpu.interop.toy_flux import SPEC
from tests.harness.manifests import file_entry, write_manifest


def test_a_damaged_model_of_an_engine_is_not_taken(tmp_path):
    path = tmp_path / "svdq.safetensors"
    path.write_bytes(b"quantized")
    write_manifest(tmp_path, artifact=file_entry(path))
    assert digest(tmp_path, SPEC).startswith("sha256:")
    path.write_bytes(b"quantised")
    for read in (
        lambda: digest(tmp_path, SPEC),
        lambda: convert.export_checkpoint(tmp_path, tmp_path / "out", "nunchaku"),
    ):
        with pytest.raises(ArtifactError, match=r"svdq\.safetensors: another SHA-256 than the manifest's"):
            read()


def test_a_folder_with_two_checkpoints_is_refused(tmp_path):
    for name in ("svdq.safetensors", "transformer_blocks.safetensors"):
        (tmp_path / name).write_bytes(b"")
    with pytest.raises(ArtifactError, match=r"both svdq\.safetensors and transformer_blocks\.safetensors, want one"):
        digest(tmp_path, SPEC)
