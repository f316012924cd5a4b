"""The build backend of pyproject.toml: scikit-build-core, with nvcc from PyPI where the machine has none.

nvcc is searched for in this order: CUDACXX, PATH, CUDA_HOME or CUDA_PATH, /usr/local/cuda, then NVIDIA's
wheels in the build environment. Where the first four find nothing, `get_requires_for_build_wheel` asks pip
for the wheels, so ``pip install .`` works with a C++ compiler and nothing else. An older nvcc is not used.

With ``--no-build-isolation`` pip installs no requirements: then run ``pip install`` on NVCC_WHEELS first.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from scikit_build_core import build as _skbuild
from scikit_build_core.build import (
    build_sdist,
    get_requires_for_build_sdist,
    prepare_metadata_for_build_editable,  # without these two pip compiles everything to learn what is required
    prepare_metadata_for_build_wheel,
)

__all__ = [
    "build_editable",
    "build_sdist",
    "build_wheel",
    "get_requires_for_build_editable",
    "get_requires_for_build_sdist",
    "get_requires_for_build_wheel",
    "prepare_metadata_for_build_editable",
    "prepare_metadata_for_build_wheel",
]

MIN_NVCC = (12, 9)  # the first release with sm_120f
NVCC_WHEELS = ["cuda-toolkit[cccl,crt,cudart,nvcc,nvvm]==13.0.2"]  # CUDA 13.0, as in tensorrt-rtx and torch

Settings = dict[str, Any] | None


def _nvcc_version(nvcc: str | Path) -> tuple[int, int]:
    try:
        text = subprocess.run([str(nvcc), "--version"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return (0, 0)
    match = re.search(r"release (\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def machine_nvcc() -> str | None:
    """The machine's own nvcc, if it is new enough."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    candidates = [os.environ.get("CUDACXX"), shutil.which("nvcc"), *(f"{h}/bin/nvcc" for h in homes if h)]
    return next((c for c in candidates if c and _nvcc_version(c) >= MIN_NVCC), None)


def wheel_toolkit() -> Path | None:
    """Root of a CUDA toolkit installed from NVIDIA's wheels in this Python environment."""
    spec = importlib.util.find_spec("nvidia")
    for place in (spec.submodule_search_locations or []) if spec else []:
        for root in sorted(Path(place).glob("cu[0-9]*"), reverse=True):
            if _nvcc_version(root / "bin" / "nvcc") >= MIN_NVCC:
                return root
    return None


def _use_nvcc() -> None:
    """Point CMake at an nvcc, by environment variables that only this build process sees."""
    nvcc = machine_nvcc()
    if nvcc:
        os.environ["CUDACXX"] = nvcc
        return
    root = wheel_toolkit()
    if root is None:
        wanted = " ".join(NVCC_WHEELS)
        raise SystemExit(
            f"nvcc: none of CUDA {'.'.join(map(str, MIN_NVCC))} or newer, want one to compile the kernels. "
            f"Put nvcc on PATH, or: pip install '{wanted}'"
        )
    os.environ["CUDACXX"] = str(root / "bin" / "nvcc")
    # nvcc looks in lib64, the wheels have lib; FindCUDAToolkit wants libcudart.so, they have libcudart.so.13.
    lib = root / "lib"
    os.environ["LIBRARY_PATH"] = os.pathsep.join(filter(None, [str(lib), os.environ.get("LIBRARY_PATH")]))
    cudart = next(iter(sorted(lib.glob("libcudart.so*"))), None)
    extra = [f"-DCUDAToolkit_ROOT={root}", *([f"-DCUDA_CUDART={cudart}"] if cudart else [])]
    os.environ["CMAKE_ARGS"] = " ".join(filter(None, [os.environ.get("CMAKE_ARGS"), *extra]))


def _requires() -> list[str]:
    return [] if machine_nvcc() or wheel_toolkit() else NVCC_WHEELS


def get_requires_for_build_wheel(config_settings: Settings = None) -> list[str]:
    """PEP 517 hook."""
    return [*_skbuild.get_requires_for_build_wheel(config_settings), *_requires()]


def get_requires_for_build_editable(config_settings: Settings = None) -> list[str]:
    """PEP 660 hook."""
    return [*_skbuild.get_requires_for_build_editable(config_settings), *_requires()]


def build_wheel(wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None) -> str:
    """PEP 517 hook."""
    _use_nvcc()
    return _skbuild.build_wheel(wheel_directory, config_settings, metadata_directory)


def build_editable(
    wheel_directory: str, config_settings: Settings = None, metadata_directory: str | None = None
) -> str:
    """PEP 660 hook."""
    _use_nvcc()
    return _skbuild.build_editable(wheel_directory, config_settings, metadata_directory)
