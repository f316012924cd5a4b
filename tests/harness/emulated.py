"""The C API over the portable CUDA kernels, compiled for the CPU (emulation/); device memory is host memory."""

from __future__ import annotations

import ctypes
import os
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from kernel_calls import Library

ROOT = Path(__file__).resolve().parents[2]
SOURCES = (
    "tests/cpu/emulation/emulation.cpp",
    *(f"plugins/capi/{name}.cpp" for name in ("svdq", "mlp", "attention")),
    *(f"plugins/kernels/{name}.cpp" for name in ("mlp", "attention", "registry")),
    *(f"plugins/kernels/attention/{name}.cu" for name in ("prepare", "portable", "portable_f16", "portable_bf16")),
    "plugins/kernels/gemv/w4a16_gemv.cu",
    *(f"plugins/kernels/portable/{name}.cu" for name in ("int4", "int4_mlp", "nvfp4", "nvfp4_mlp", "w4a8", "w4a16")),
)


def cuda_headers() -> Path | None:
    """The folder of cuda_fp16.h, from nvcc's own preprocessor."""
    try:
        text = subprocess.run(
            ["nvcc", "-E", "-x", "cu", "-include", "cuda_fp16.h", "/dev/null"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
    except (OSError, subprocess.CalledProcessError):
        return None
    found = (line.split('"')[1] for line in text.splitlines() if line.startswith("#") and "cuda_fp16.h" in line)
    return next((Path(path).parent for path in found if Path(path).is_absolute()), None)


def build(headers: Path, out: Path) -> Library:
    """Compile into the folder `out` and load."""
    flags = "-x c++ -std=c++17 -O1 -ffp-contract=off -fPIC -fvisibility=hidden -w -DSVDQ_EMULATION -DSVDQ_WITH_SM90=0"
    flags += " -U_FORTIFY_SOURCE"  # fibers jump from stack to stack, which a fortified longjmp refuses
    includes = [
        f"-I{path}" for path in (ROOT / "tests/cpu/emulation", headers, ROOT / "plugins", ROOT / "plugins/include")
    ]
    includes += ["-include", "emulation.h", "-DSVDQ_TARGETS={89,0}", '-DSVDQ_VERSION="0"']

    def compile_one(source: str) -> str:
        target = out / (source.replace("/", "_") + ".o")
        subprocess.run(["g++", *flags.split(), *includes, "-c", str(ROOT / source), "-o", str(target)], check=True)
        return str(target)

    with ThreadPoolExecutor(os.cpu_count()) as pool:
        objects = list(pool.map(compile_one, SOURCES))
    path = out / "libsvdq_emulated.so"
    subprocess.run(["g++", "-shared", *objects, "-o", str(path)], check=True)
    return Library(path, "cpu")


def last_launch(library: Library) -> tuple[int, int, int]:
    """(tiles, splits of K, threads) of the last kernel that ran: gemm."""
    out = [ctypes.c_int() for _ in range(3)]
    library.c.emulation_last_launch(*map(ctypes.byref, out))
    return out[0].value, out[1].value, out[2].value


def launches(library: Library) -> int:
    """Kernels that have run so far."""
    return int(ctypes.c_int.in_dll(library.c, "emulation_launches").value)
