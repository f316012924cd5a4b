"""The library that registers the plugin when it is merely opened, as Triton's `plugins=` and trtexec do it."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from svdq_trt.base.libraries import AUTOLOAD, AUTOLOAD_ENV, locate
from svdq_trt.contract.attention import EVERY_OP

OFFICIAL = os.environ.get("TENSORRT_INCLUDE_DIR")


@pytest.fixture
def beside(library, tmp_path):
    """A folder as in a model repository: the plugin, and the autoloader beside it."""
    autoload = locate(AUTOLOAD, AUTOLOAD_ENV)
    if not autoload.is_file() and "trt" not in os.environ.get("SVDQ_REQUIRE", "").split(","):
        pytest.skip(f"no {autoload}")
    shutil.copy(autoload, tmp_path)
    shutil.copy(library.path, tmp_path)
    return tmp_path


def opened(first: str, folder: Path, then: str = "") -> subprocess.CompletedProcess[str]:
    """A process that loads a TensorRT and then opens the autoloader, only by dlopen."""
    code = f"import ctypes\n{first}\nctypes.CDLL({str(folder / AUTOLOAD)!r})\n{then}"
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True)


@pytest.fixture(scope="session")
def compiler() -> str:
    return shutil.which(os.environ.get("CXX", "c++")) or pytest.skip("no C++ compiler")


def fake_nvinfer(compiler: str, folder: Path, major: int) -> str:
    path, source = folder / f"libnvinfer.so.{major}", Path(__file__).with_name("fake_nvinfer.cpp")
    subprocess.run([compiler, "-shared", "-fPIC", f"-DMAJOR={major}", str(source), "-o", str(path)], check=True)
    return f"ctypes.CDLL({str(path)!r})"


def test_opening_it_registers_every_op(beside):
    done = opened(
        "import tensorrt_rtx as trt",
        beside,
        "from svdq_trt.engine.plugin_lib import registered_ops\nprint(*registered_ops(trt))",
    )
    assert set(done.stdout.split()) == set(EVERY_OP) and done.stderr == ""


@pytest.mark.parametrize("major", [10, 11])
def test_each_release_is_called_where_its_vtable_has_load_library(beside, compiler, tmp_path, major):
    done = opened(fake_nvinfer(compiler, tmp_path, major), beside)
    assert done.stdout.strip() == f"loadLibrary {beside / 'libsvdq_trt_plugin.so'}" and done.stderr == ""


def test_unknown_release_is_left_alone(beside, compiler, tmp_path):
    done = opened(fake_nvinfer(compiler, tmp_path, 12), beside)
    assert done.stdout == "" and "unknown release of TensorRT" in done.stderr


def test_without_tensorrt_it_says_so(beside):
    assert "no TensorRT in this process" in opened("", beside).stderr


def test_without_the_plugin_it_says_so(beside):
    (beside / "libsvdq_trt_plugin.so").unlink()
    assert "TensorRT refused" in opened("import tensorrt_rtx", beside).stderr


@pytest.mark.skipif(not OFFICIAL, reason="TENSORRT_INCLUDE_DIR is not set")
def test_official_header_has_the_slot(compiler, tmp_path):
    """10 in TensorRT 10, 6 in TensorRT 11: 1 + 8 * slot is the first word of a pointer to a virtual member."""
    program, nvcc = tmp_path / "slot", shutil.which("nvcc")
    source = """\
#include <NvInferVersion.h>
#include <NvInferRuntime.h>
#include <cstdio>
#include <cstring>
int main() {
    auto member = &nvinfer1::IPluginRegistry::loadLibrary;
    long words[2];
    std::memcpy(words, &member, sizeof words);
    std::printf("%d %ld", NV_TENSORRT_MAJOR, words[0] / 8);
}
"""
    (tmp_path / "slot.cpp").write_text(source)
    homes = [os.environ.get("CUDA_HOME"), str(Path(nvcc).parent.parent) if nvcc else None, "/usr/local/cuda"]
    cuda = [f"-isystem{home}/include" for home in homes if home]
    subprocess.run(
        [compiler, "-w", f"-isystem{OFFICIAL}", *cuda, str(tmp_path / "slot.cpp"), "-o", str(program)], check=True
    )
    major, slot = subprocess.run([str(program)], capture_output=True, text=True, check=True).stdout.split()
    assert int(slot) == {10: 10, 11: 6}[int(major)]
