"""Our declaration of TensorRT's plugin ABI states the same facts as the official headers.

plugin_abi.txt is what abi_check.cpp prints when it is compiled against the official headers of TensorRT 11.1.
With TENSORRT_INCLUDE_DIR set, that file itself is checked, and the plugin is compiled against the headers.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PLUGIN = ROOT / "plugins" / "trt"
FACTS = Path(__file__).with_name("plugin_abi.txt")
OFFICIAL = os.environ.get("TENSORRT_INCLUDE_DIR")

needs_headers = pytest.mark.skipif(not OFFICIAL, reason="TENSORRT_INCLUDE_DIR is not set")


@pytest.fixture(scope="module")
def compiler() -> str:
    found = shutil.which(os.environ.get("CXX", "c++"))
    return found or pytest.skip("no C++ compiler")


def cuda_include() -> list[str]:
    nvcc = shutil.which("nvcc")
    homes = [os.environ.get("CUDA_HOME"), str(Path(nvcc).parent.parent) if nvcc else None, "/usr/local/cuda"]
    return [f"-isystem{h}/include" for h in homes if h and (Path(h) / "include" / "cuda_runtime_api.h").is_file()]


def official_flags() -> list[str]:
    return ["-DSVDQ_OFFICIAL_TENSORRT_HEADERS", f"-isystem{OFFICIAL}", *cuda_include()]


def facts(compiler: str, folder: Path, flags: list[str]) -> list[str]:
    program = folder / "abi_check"
    source = PLUGIN / "abi" / "abi_check.cpp"
    subprocess.run([compiler, "-std=c++17", "-w", *flags, str(source), "-o", str(program)], check=True)
    return subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout.splitlines()


def test_declared_abi_states_the_recorded_facts(compiler, tmp_path):
    got = facts(compiler, tmp_path, [])
    assert got == FACTS.read_text().splitlines()
    assert not [line for line in got if line.startswith("slot") and line.endswith(" -1")]


@needs_headers
def test_official_headers_state_the_recorded_facts(compiler, tmp_path):
    assert facts(compiler, tmp_path, official_flags()) == FACTS.read_text().splitlines()


@needs_headers
@pytest.mark.parametrize("source", sorted(p.name for p in PLUGIN.glob("*.cpp")))
def test_plugin_compiles_against_official_headers(compiler, source):
    include = [f"-I{PLUGIN}", f"-I{ROOT / 'plugins' / 'include'}"]
    flags = ["-std=c++17", "-fsyntax-only", "-Wall", "-Wextra", "-Werror", *include, *official_flags()]
    subprocess.run([compiler, *flags, str(PLUGIN / source)], check=True)
