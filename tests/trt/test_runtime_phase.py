"""Serialization, contexts and threads, driven through the library's own entry points (plugin_driver.cpp)."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def test_runtime_phase_of_every_op(library, tmp_path):
    compiler = shutil.which(os.environ.get("CXX", "c++"))
    if compiler is None:
        pytest.skip("no C++ compiler")
    program = tmp_path / "plugin_driver"
    include = [f"-I{ROOT / 'plugins' / 'trt'}", f"-I{ROOT / 'plugins' / 'include'}"]
    source = str(Path(__file__).with_name("plugin_driver.cpp"))
    subprocess.run(
        [
            compiler,
            "-std=c++17",
            "-Wall",
            "-Wextra",
            *include,
            source,
            "-o",
            str(program),
            "-ldl",
            "-pthread",
        ],
        check=True,
    )
    done = subprocess.run([str(program), str(library.path)], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["0 checks failed"], done.stdout + done.stderr
    assert done.returncode == 0
