"""Digests, .safetensors and checks of inputs of examples/cpp against Python's, on good and broken files."""

from __future__ import annotations

import hashlib
import json
import struct
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from svdq_trt.artifact.manifest import Tensor, to_json
from svdq_trt.base.errors import ShapeError
from svdq_trt.runtime.shapes import check_inputs
from tests.cpu.cpp.conftest import run
from tests.harness.unfit import FIT, PROFILES, UNFIT, tensors


@pytest.mark.parametrize("size", [0, 1, 64, (1 << 20) - 1, 1 << 20, (1 << 20) + 57])
def test_digests_are_hashlibs(driver, tmp_path, size):
    data = bytes(i * 37 % 251 for i in range(size))
    (tmp_path / "file").write_bytes(data)
    assert run(driver, "digest", tmp_path / "file", hashlib.sha256(data).hexdigest()).returncode == 0
    done = run(driver, "digest", tmp_path / "file", "0" * 64)
    assert done.returncode == 1 and f"file: another SHA-256 than the manifest's, want {'0' * 64}." in done.stderr


BROKEN_JSON = [
    "",
    "{",
    "[1,]",
    '{"a"}',
    '{"a":1',
    '"x',
    "tru",
    "1 2",
    "[" * 100_000,
    "1e999",
    "\\",
    '"\\q"',
    '"\\u12',
] + [json.dumps({"a": {"b": [1, "x"]}})[:n] for n in range(1, 20)]


@pytest.mark.parametrize("text", BROKEN_JSON, ids=range(len(BROKEN_JSON)))
def test_broken_json_is_refused(driver, tmp_path, text):
    (tmp_path / "file").write_text(text)
    done = run(driver, "json", tmp_path / "file")
    assert done.returncode == 1 and ", want " in done.stderr and "Sanitizer" not in done.stderr, done.stderr


def test_safetensors_round_trip(driver, tmp_path):
    tensors = {
        "x": torch.arange(24).reshape(2, 3, 4).half(),
        "y": torch.randn(5).bfloat16(),
        "empty": torch.zeros(0, 7),
        "scalar": torch.tensor(3.5),
        "ids": torch.tensor([2**40]),
        "codes": torch.tensor([[-3, 4]], dtype=torch.int8),
    }
    save_file(tensors, tmp_path / "in", metadata={"a": "b"})
    assert run(driver, "copy", tmp_path / "in", tmp_path / "out").returncode == 0
    got = load_file(tmp_path / "out")
    assert set(got) == set(tensors)
    for name, value in tensors.items():
        assert got[name].dtype == value.dtype and got[name].shape == value.shape and torch.equal(got[name], value), name


def header(entry: dict) -> bytes:
    text = json.dumps({"x": {"dtype": "F16", "shape": [2], "data_offsets": [0, 4]} | entry}).encode()
    return struct.pack("<Q", len(text)) + text + b"1234"


BROKEN = {
    "empty": b"",
    "short": b"\x01\x00",
    "no header": struct.pack("<Q", 100) + b"{}",
    "huge": b"\xff" * 8 + b"{}",
    "offsets beyond": header({"data_offsets": [0, 400]}),
    "offsets reversed": header({"data_offsets": [4, 0]}),
    "negative": header({"data_offsets": [-4, 0]}),
    "shape": header({"shape": [3]}),
    "minus": header({"shape": [-2]}),
    "overflow": header({"shape": [2**40, 2**40, 2**40]}),
    "dtype": header({"dtype": "F17"}),
    "three": header({"data_offsets": [0, 4, 8]}),
    "type": header({"shape": "2"}),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_safetensors_is_refused(driver, tmp_path, case):
    (tmp_path / "in").write_bytes(BROKEN[case])
    done = run(driver, "copy", tmp_path / "in", tmp_path / "out")
    assert done.returncode == 1 and ", want " in done.stderr and "Sanitizer" not in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


def manifest(folder: Path, **changes: object) -> Path:
    """An engine folder's."""
    entries = [to_json(Tensor.of(profile)) | changes for profile in PROFILES]
    folder.mkdir(exist_ok=True)
    (folder / "manifest.json").write_text(json.dumps({"version": 1, "inputs": entries}))
    return folder


@pytest.mark.parametrize("case", UNFIT)
def test_unfit_inputs_are_refused_in_the_same_words(driver, tmp_path, case):
    given = tensors(**UNFIT[case][0])
    save_file(given, tmp_path / "in")
    done = run(driver, "check", manifest(tmp_path / "m"), tmp_path / "in")
    with pytest.raises(ShapeError) as caught:
        check_inputs(PROFILES, given)
    assert done.returncode == 1 and str(caught.value).startswith(done.stderr.strip()), done.stderr


@pytest.mark.parametrize("case", FIT)
def test_fit_inputs_are_accepted(driver, tmp_path, case):
    save_file(tensors(**FIT[case]), tmp_path / "in")
    assert run(driver, "check", manifest(tmp_path / "m"), tmp_path / "in").returncode == 0


def test_manifest_without_axes_has_its_ranges(driver, tmp_path):
    """Of an earlier release; one whose lists differ in length is refused."""
    save_file(tensors(sample=(2, 4, 17, 16)), tmp_path / "in")
    assert run(driver, "check", manifest(tmp_path / "m", axes=[]), tmp_path / "in").returncode == 0
    done = run(driver, "check", manifest(tmp_path / "m", axes=["batch"] * 9), tmp_path / "in")
    assert done.returncode == 1 and "'sample' with lists of several lengths, want one length." in done.stderr
