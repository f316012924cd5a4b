"""Quantized here, built there: an engine from `svdq-trt quantize`'s file has the plan inputs of a direct build."""

from __future__ import annotations

import subprocess
from pathlib import Path

from tests.harness import builds
from tests.harness.builds import FIXED

MODEL = "pixart-tiny"


def svdq(command: str, *words: str) -> subprocess.CompletedProcess[str]:
    return builds.svdq(command, "--model", MODEL, "--arch", "sm_89", *words)


def onnx_files(out: Path) -> list[bytes]:
    return [(out / f"{MODEL}-sm_89" / name).read_bytes() for name in ("model.onnx", "model.onnx.data")]


def test_engine_is_that_of_a_direct_build(tmp_path):
    here, there = tmp_path / "here", tmp_path / "there"
    weights = ("--random-weights", "0", "--preset", "fast", "--device", "cpu")
    done = svdq("quantize", *weights, "--out", str(here))
    assert done.returncode == 0, done.stderr
    artifact = here / f"{MODEL}-shared" / "int4-r32" / "svdq.safetensors"
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes(artifact.read_bytes())
    # A backend that is not there: everything but the plan is written.
    build = svdq("build", *weights, *FIXED, "--no-check", "--backend", "tensorrt", "--out", str(here))
    assert build.returncode == 4 and "quantize  int4 rank 32" in build.stderr, build.stderr
    assert build.stderr.count("reused") == 1  # with the same options and folder it reuses the artifact
    build = svdq("build", "--quantized", str(moved), *FIXED, "--backend", "tensorrt", "--out", str(there))
    assert build.returncode == 4, build.stderr
    assert onnx_files(there) == onnx_files(here)
    assert (there / f"{MODEL}-sm_89" / "svdq.safetensors").read_bytes() == artifact.read_bytes()
