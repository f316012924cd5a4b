"""The engine benchmark's own builds, which need no GPU: an engine for another machine."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from svdq_trt.artifact import manifest
from svdq_trt.cli import main

ROOT = Path(__file__).resolve().parents[2]


def test_an_engine_is_made_for_a_gpu_that_is_not_here(library, tmp_path):
    words = ["--stage", "make", "--model", "flux1-tiny", "--formats", "w4a8", "--target", "89", "--torch-device", "cpu"]
    words += ["--weight-streaming", "--work", tmp_path]
    command = [sys.executable, ROOT / "benchmarks" / "bench_engine.py", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout) == (0, "make-w4a8: ok\n"), done.stderr
    data = manifest.read(tmp_path / "w4a8")
    assert data.plan is not None and data.plan.weight_streaming and data.attention == "tensorrt"
    assert main(["verify", str(tmp_path / "w4a8")]) == 0
