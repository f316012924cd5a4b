"""JSON, SHA-256, .safetensors and checks of inputs of examples/cpp against Python's, on good and broken files."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from svdq_trt.artifact.manifest import Tensor, to_json
from svdq_trt.base.errors import ShapeError
from svdq_trt.runtime.shapes import check_inputs
from tests.harness.unfit import FIT, PROFILES, UNFIT, tensors

EXAMPLE = Path(__file__).resolve().parents[3] / "examples" / "cpp"


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = tmp_path_factory.mktemp("cpp") / "parts_driver"
    sources = [EXAMPLE / f"{name}.cpp" for name in ("inputs", "json", "safetensors", "sha256")]
    flags = ["-std=c++17", "-O1", "-Wall", "-Wextra", "-Werror", "-fsanitize=address,undefined"]
    own = Path(__file__).with_name("parts_driver.cpp")
    subprocess.run([compiler, *flags, f"-I{EXAMPLE}", str(own), *map(str, sources), "-o", str(program)], check=True)

    def run(*args: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run([str(program), *map(str, args)], capture_output=True, text=True, timeout=60)

    return run


@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 65, 119, 120, (1 << 20) - 1, 1 << 20, (1 << 20) + 57])
def test_sha256_is_hashlibs(driver, tmp_path, size):
    data = bytes(i * 37 % 251 for i in range(size))
    (tmp_path / "file").write_bytes(data)
    assert driver("sha", tmp_path / "file").stdout == hashlib.sha256(data).hexdigest()


def test_json_is_pythons(driver, tmp_path):
    value = {"a": [1, -2, {"b": None}], "c": True, "d": False, "e": "x/y.z", "f": [], "g": {}, "n": 2**53, "z": 1e3}
    want = json.dumps(value | {"z": 1000}, sort_keys=True, separators=(",", ":"))
    for text in (json.dumps(value), json.dumps(value, indent=2)):
        (tmp_path / "file").write_text(text)
        assert driver("json", tmp_path / "file").stdout == want


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
    '{"a":1.5}',
    "1e999",
    "\\",
    '"\\q"',
    '"\\u12',
] + [json.dumps({"a": {"b": [1, "x"]}})[:n] for n in range(1, 20)]


@pytest.mark.parametrize("text", BROKEN_JSON, ids=range(len(BROKEN_JSON)))
def test_broken_json_is_refused(driver, tmp_path, text):
    (tmp_path / "file").write_text(text)
    done = driver("json", tmp_path / "file")
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
    assert driver("copy", tmp_path / "in", tmp_path / "out").returncode == 0
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
    done = driver("copy", tmp_path / "in", tmp_path / "out")
    assert done.returncode == 1 and ", want " in done.stderr and "Sanitizer" not in done.stderr, done.stderr
    assert not (tmp_path / "out").exists()


def manifest(path: Path, **changes: object) -> Path:
    entries = [to_json(Tensor.of(profile)) | changes for profile in PROFILES]
    path.write_text(json.dumps({"inputs": entries}))
    return path


@pytest.mark.parametrize("case", UNFIT)
def test_unfit_inputs_are_refused_in_the_same_words(driver, tmp_path, case):
    given = tensors(**UNFIT[case][0])
    save_file(given, tmp_path / "in")
    done = driver("check", manifest(tmp_path / "m"), tmp_path / "in")
    with pytest.raises(ShapeError) as caught:
        check_inputs(PROFILES, given)
    assert done.returncode == 1 and str(caught.value).startswith(done.stderr.strip()), done.stderr


@pytest.mark.parametrize("case", FIT)
def test_fit_inputs_are_accepted(driver, tmp_path, case):
    save_file(tensors(**FIT[case]), tmp_path / "in")
    assert driver("check", manifest(tmp_path / "m"), tmp_path / "in").returncode == 0


def test_manifest_without_axes_has_its_ranges(driver, tmp_path):
    """Of an earlier release; one whose lists differ in length is refused."""
    save_file(tensors(sample=(2, 4, 17, 16)), tmp_path / "in")
    assert driver("check", manifest(tmp_path / "m", axes=[]), tmp_path / "in").returncode == 0
    done = driver("check", manifest(tmp_path / "m", axes=["batch"] * 9), tmp_path / "in")
    assert done.returncode == 1 and "'sample' with lists of several lengths, want one length." in done.stderr
