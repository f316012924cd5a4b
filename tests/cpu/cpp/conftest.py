"""examples/cpp without TensorRT: built once, with the driver and sanitizers."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="session")
def driver(tmp_path_factory) -> Path:
    """The program of driver.cpp."""
    if shutil.which("cmake") is None:
        pytest.skip("no cmake")
    build = tmp_path_factory.mktemp("cpp")
    prefix = f"-DCMAKE_PREFIX_PATH={Path(sys.prefix) / 'cpp' / 'usr'}"  # where make puts what the machine lacks
    configured = run("cmake", "-S", HERE, "-B", build, prefix)
    if configured.returncode:
        pytest.skip(f"no libraries for examples/cpp: {' '.join(configured.stderr.split())[:300]}")
    built = run("cmake", "--build", build, "--parallel", "2")
    assert built.returncode == 0, built.stdout + built.stderr
    assert "warning" not in built.stdout + built.stderr
    return build / "driver"


def run(*words: object, given: str = "") -> subprocess.CompletedProcess[str]:
    """A command's output."""
    return subprocess.run([*map(str, words)], input=given, capture_output=True, text=True, timeout=900)
