"""examples/cpp built against TensorRT's official headers (TENSORRT_INCLUDE_DIR): what it refuses without a GPU, and on
one the same bits as Python's Session, and the same refusals.

SVDQ_TEST_STATIC_ENGINE names an engine folder of sdxl-tiny whose profile is one shape, SVDQ_TEST_PIPELINE one of a
whole pipeline for pictures of 128 x 128 pixels. With dynamic shapes TensorRT-RTX starts on general kernels unless it is
asked to specialize eagerly; Session asks, the official headers cannot.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from svdq_trt.engine import plugin_lib
from svdq_trt.models import get_model

ROOT = Path(__file__).resolve().parents[2]
HOST_CODE = os.environ.get("SVDQ_TEST_HOST_CODE") == "1"


needs_headers = pytest.mark.skipif(not os.environ.get("TENSORRT_INCLUDE_DIR"), reason="TENSORRT_INCLUDE_DIR is not set")
needs_cmake = pytest.mark.skipif(shutil.which("cmake") is None, reason="no cmake")
pytestmark = [needs_headers, needs_cmake]


def library_dir() -> str:
    """TENSORRT_LIBRARY_DIR, or where the Python package has its libraries."""
    spec = importlib.util.find_spec("tensorrt_rtx_libs")
    packaged = "" if spec is None or spec.origin is None else str(Path(spec.origin).parent)
    return os.environ.get("TENSORRT_LIBRARY_DIR") or packaged or pytest.skip("no TensorRT library folder")


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """The folder of the programs."""
    build = tmp_path_factory.mktemp("cpp")
    configure = [
        "cmake",
        "-S",
        str(ROOT / "examples" / "cpp"),
        "-B",
        str(build),
        f"-DTENSORRT_INCLUDE_DIR={os.environ['TENSORRT_INCLUDE_DIR']}",
        f"-DTENSORRT_LIBRARY_DIR={library_dir()}",
        f"-DCMAKE_PREFIX_PATH={Path(sys.prefix) / 'cpp' / 'usr'}",  # where make puts libraries that the machine lacks
    ]
    for command in (configure, ["cmake", "--build", str(build), "--parallel", "8"]):
        done = subprocess.run(command, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
    return build


@pytest.fixture(scope="module")
def program(programs):
    return programs / "svdq_run"


@pytest.fixture(scope="module")
def folder():
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    path = os.environ.get("SVDQ_TEST_STATIC_ENGINE")
    if not path:
        pytest.skip("SVDQ_TEST_STATIC_ENGINE names no engine folder")
    return Path(path)


def run(program, *words):
    source = ["--allow-host-code"] if HOST_CODE else ["--plugin", str(plugin_lib.find().path)]
    command = [str(program), *map(str, words), *source, "--allow-arch-mismatch"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def inputs(folder, tmp_path_factory):
    """Inputs at the engine's one shape."""
    spec = get_model("sdxl-tiny")
    sample = json.loads((folder / "manifest.json").read_text())["inputs"][0]["shape"]
    assert sample["min"] == sample["max"], "the engine's profile is not one shape"
    batch, _, height, width = sample["opt"]
    tensors = spec.example_inputs(batch=batch, height=8 * height, width=8 * width, seed=3)
    path = tmp_path_factory.mktemp("inputs") / "inputs.safetensors"
    save_file({io.name: t.contiguous() for io, t in zip(spec.inputs, tensors, strict=True)}, path)
    return path


def run_example(program, *words):
    done = subprocess.run([str(program), *map(str, words)], capture_output=True, text=True, timeout=60)
    return done.returncode, done.stderr


BAD_ARGUMENTS = {
    "0 files, want 3": [],
    "4 files, want 3": list("abcd"),
    "unknown option --no": ["a", "b", "c", "--no"],
    "--device x, want a number": ["a", "b", "c", "--device", "x"],
    "without a value": ["a", "b", "c", "--repeat"],
}


@pytest.mark.parametrize("text", BAD_ARGUMENTS)
def test_bad_arguments_are_exit_code_2(program, text):
    code, said = run_example(program, *BAD_ARGUMENTS[text])
    assert code == 2 and text in said and "Usage: svdq_run ENGINE_DIR" in said


def test_broken_folders_are_refused_before_cuda_is_touched(program, tmp_path):
    out = tmp_path / "out"
    assert run_example(program, tmp_path / "none", "x", out) == (
        1,
        f"svdq_run: {tmp_path}/none/manifest.json: cannot be read, want an engine manifest.\n",
    )
    for text, want in (
        ("{", "JSON"),
        ("[]", "an object"),
        ('{"version": 2}', "another version"),
        ('{"version": 1, "plan": {}, "plugin": {}}', "no plan yet"),
        ('{"version": 1, "plan": {"file": ""}, "plugin": {}}', "a plan in pieces, of --step-cache"),
    ):
        (tmp_path / "manifest.json").write_text(text)
        code, said = run_example(program, tmp_path, "x", out)
        assert code == 1 and want in said and said.startswith(f"svdq_run: {tmp_path}"), said


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_no_gpu_is_reported(program, tmp_path):
    manifest = {"version": 1, "plan": {"file": "p"}, "plugin": {}, "arch": "sm_89"}
    (tmp_path / "manifest.json").write_text(json.dumps(manifest))
    code, said = run_example(program, tmp_path, "x", tmp_path / "out")
    assert code == 1 and said.startswith("svdq_run: CUDA device 0: ") and "want an NVIDIA GPU" in said


def test_same_bits_as_python(program, folder, inputs, tmp_path):
    from svdq_trt.runtime import Session

    outputs = tmp_path / "out.safetensors"
    done = run(program, folder, inputs, outputs, "--repeat", "20")
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(" ms a run\n")
    with Session(folder, allow_arch_mismatch=True, allow_host_code=HOST_CODE) as session:
        want = session.run({name: t.cuda() for name, t in load_file(inputs).items()})
        got = load_file(outputs)
        assert set(got) == set(want)
        for name, value in want.items():
            assert got[name].dtype == value.dtype and torch.equal(got[name], value.cpu()), name


def test_refuses_what_python_refuses(program, folder, inputs, tmp_path):
    copy = tmp_path / "engine"
    copy.mkdir()
    for name in ("manifest.json", "model.plan"):
        shutil.copy(folder / name, copy / name)

    def refused(text, *options):
        done = run(program, copy, inputs, tmp_path / "none", *options)
        assert done.returncode == 1 and text in done.stderr, done.stderr
        assert not (tmp_path / "none").exists()

    good = (copy / "manifest.json").read_text()
    manifest = json.loads(good)
    plan = bytearray((copy / "model.plan").read_bytes())
    refused("not found" if torch.cuda.device_count() > 7 else "CUDA device 7", "--device", "7")
    plan[len(plan) // 2] ^= 1
    (copy / "model.plan").write_bytes(plan)
    refused("another SHA-256")
    (copy / "model.plan").write_bytes(plan[:-1])
    refused("bytes, want")
    for change, text in (
        ({"backend": {"name": "tensorrt-rtx", "version": "9.9"}}, "the release that is linked"),
        ({"plugin": manifest["plugin"] | {"version": "0.1.0"}}, "want 0.1.0"),
        ({"version": 2}, "another version"),
        ({"plan": {}}, "no plan yet"),
    ):
        (copy / "manifest.json").write_text(json.dumps(manifest | change))
        refused(text)
    (copy / "manifest.json").write_text(good[: len(good) // 2])
    refused("manifest.json")


def test_refuses_inputs_that_do_not_fit(program, folder, inputs, tmp_path):
    tensors = load_file(inputs)
    wrong = {
        "F32, want F16": tensors | {"sample": tensors["sample"].float()},
        "shape [6, 4, 16, 16], want [2, 4, 16, 16]": tensors | {"sample": torch.cat([tensors["sample"]] * 3)},
    }
    for text, changed in wrong.items():
        save_file({k: v.contiguous() for k, v in changed.items()}, tmp_path / "wrong.safetensors")
        done = run(program, folder, tmp_path / "wrong.safetensors", tmp_path / "none")
        assert done.returncode == 1 and text in done.stderr, (text, done.stderr)


@pytest.mark.parametrize("text", ["no --prompt", "unknown option --no"])
def test_text_to_image_refuses_arguments(programs, text):
    words = {"no --prompt": ["folder"], "unknown option --no": ["folder", "--no"]}[text]
    code, said = run_example(programs / "text_to_image", *words)
    assert code == 2 and text in said and "Usage: text_to_image FOLDER" in said


def test_latents_are_pythons(programs, tmp_path):
    """Up to the last bits of noise levels: PyTorch's square roots are not the nearest values on every CPU."""
    from svdq_trt.pipeline import load
    from tests.harness.tiny_pipelines import random

    folder = os.environ.get("SVDQ_TEST_PIPELINE") or pytest.skip("SVDQ_TEST_PIPELINE names no folder of engines")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")
    noise, out = random(1, 4, 16, 16).half(), tmp_path / "fox.png"
    save_file({"latents": noise}, tmp_path / "noise.safetensors")
    files = ["--noise", tmp_path / "noise.safetensors", "--latents", tmp_path / "latents.safetensors", "--out", out]
    asked = ["--prompt", "a fox", "--negative", "dogs", "--steps", 4, "--guidance", 4]
    done = run(programs / "text_to_image", folder, *asked, *files)
    assert (done.returncode, done.stdout) == (0, f"{out}\n"), done.stderr
    pipe = load(folder, runtime="tensorrt", allow_host_code=HOST_CODE, allow_arch_mismatch=True)
    call = {"num_inference_steps": 4, "guidance_scale": 4.0, "width": 128, "height": 128, "output_type": "latent"}
    want = pipe("a fox", negative_prompt="dogs", latents=noise.cuda(), **call).images.cpu().float()
    got = load_file(tmp_path / "latents.safetensors")["latents"].float()
    error = float((got - want).norm() / want.norm())
    print(f"error {error:.2e}, {int((got != want).sum())} of {got.numel()} values differ")
    assert want.std() > 0.1 and error < 0.02
