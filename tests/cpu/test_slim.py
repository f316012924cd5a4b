"""Without the extras engines are opened, run and served; what needs an extra says so in one sentence."""

from __future__ import annotations

import subprocess

import pytest

from tests.harness import slim
from tests.harness.manifests import change_manifest, file_entry
from tests.harness.serve_toy import write_toy

RUN = """
import sys
import numpy as np
from svdq_trt.runtime import OnnxSession, Session
from tests.harness.serve_toy import toy_answer, toy_feed
for dtype in ("float16", "bfloat16"):
    with OnnxSession(f"{sys.argv[1]}/{dtype}", device="cpu") as session:
        inputs = toy_feed(dtype=dtype)
        assert np.array_equal(session.run(inputs)["y"], toy_answer(inputs))
try:
    Session(f"{sys.argv[1]}/float16")
except Exception as error:
    print(error)
"""


@pytest.fixture(scope="module")
def python(tmp_path_factory):
    """Runs Python with words; returns the finished process."""
    interpreter = slim.interpreter(tmp_path_factory.mktemp("slim"))
    return lambda *words: subprocess.run([interpreter, *words], capture_output=True, text=True, check=False)


def test_the_extras_are_absent(python):
    for module in ("torch", "matplotlib"):
        assert f"No module named '{module}'" in python("-c", f"import {module}.x").stderr


def test_engines_open_and_run(python, tmp_path):
    for dtype in ("float16", "bfloat16"):
        write_toy(tmp_path / dtype, dtype)
    done = python("-c", RUN, str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("Session: neither torch nor pycuda is installed")


def test_engines_are_written_for_triton(python, tmp_path):
    engine = str(write_toy(tmp_path / "toy", "bfloat16"))
    for variant in (["python", "--device", "cpu"], ["onnxruntime"], ["python"]):
        words = ("triton", engine, "--repository", str(tmp_path / "models"), "--variant", *variant)
        done = python("-m", "svdq_trt.cli", *words)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "command",
    [
        ["build", "--model", "sdxl-tiny", "--arch", "sm_89", "--random-weights", "0", "--out", "OUT"],
        ["diff", "ENGINE", "--against", "ENGINE"],
        ["report", "ENGINE"],
        ["models"],
        ["import", "x.safetensors", "--model", "sdxl-tiny", "--out", "OUT"],
    ],
    ids=lambda command: command[0],
)
def test_a_command_that_needs_an_extra_names_it(python, tmp_path, command):
    engine = write_toy(tmp_path / "toy")
    places = {"ENGINE": str(engine), "OUT": str(tmp_path / "out")}
    done = python("-m", "svdq_trt.cli", *(places.get(word, word) for word in command))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"svdq-trt: {command[0]}: no Python module "), line
    assert line.endswith("want an installation with the extra 'build'. pip install \"svdq-trt[build]\""), line


def test_lora_slots_need_torch(python, tmp_path):
    engine = write_toy(tmp_path / "toy")
    (engine / "lora_slots.safetensors").write_bytes(b"slots")
    change_manifest(engine, lora_slots=file_entry(engine / "lora_slots.safetensors"))
    done = python("-c", f"from svdq_trt.runtime import OnnxSession; OnnxSession({str(engine)!r}, device='cpu')")
    assert done.stderr.splitlines()[-1].endswith(
        "LoRA slots: no Python module torch, want an installation with the extra 'build'. "
        'pip install "svdq-trt[build]"'
    )
