"""The C API over the portable CUDA kernels, compiled for the CPU (emulation/); device memory is host memory."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests" / "gpu"))

from mlp_harness import Mlp  # noqa: E402
from svdq_harness import ACTIVATIONS, Linear  # noqa: E402

from svdq_trt.contract.ops import INPUTS  # noqa: E402
from svdq_trt.contract.reference.quant import Array  # noqa: E402
from svdq_trt.nn.capi import MlpParams, Params, declare  # noqa: E402

SOURCES = (
    "tests/cpu/emulation/emulation.cpp",
    *(f"plugins/capi/{name}.cpp" for name in ("svdq", "mlp")),
    *(f"plugins/kernels/{name}.cpp" for name in ("mlp", "registry")),
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


def build(headers: Path, out: Path) -> ctypes.CDLL:
    """Compile into the folder `out` and load."""
    flags = "-x c++ -std=c++17 -O1 -ffp-contract=off -fPIC -fvisibility=hidden -w -DSVDQ_EMULATION -DSVDQ_WITH_SM90=0"
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
    return declare(ctypes.CDLL(str(path)))


def aligned(a: Array) -> Array:
    """A copy at an address that is a multiple of 256."""
    raw = np.empty(a.nbytes + 256, np.uint8)
    start = -raw.ctypes.data % 256
    copy = raw[start : start + a.nbytes].view(a.dtype).reshape(a.shape)
    copy[...] = a
    return copy


def operands(linear: Linear) -> dict[str, Array]:
    """x and the constants, in the op's order of inputs."""
    return {
        t.name: aligned(getattr(linear.weight if t.name in linear.weight.__annotations__ else linear, t.name))
        for t in INPUTS
    }


def params(linear: Linear, arrays: dict[str, Array], workspace_bytes: int = 0) -> Params:
    """The C struct; `arrays` must outlive its use."""
    (m, k), n, r = linear.x.shape, linear.bias.shape[0], linear.lora_down.shape[0]
    return Params(
        format=linear.fmt.index,
        activation=ACTIVATIONS.index(linear.activation),
        dtype=int(linear.dtype == "bf16"),
        act_unsigned=int(linear.unsigned),
        act_shift=linear.shift,
        m=m,
        n=n,
        k=k,
        r=r,
        workspace_bytes=workspace_bytes,
        **{name: a.ctypes.data for name, a in arrays.items()},
    )


class Output:
    """y [M, N] and a workspace: both start as 0xff bytes, with guard bytes behind."""

    def __init__(self, m: int, n: int, workspace_bytes: int) -> None:
        self.m, self.n, self.size = m, n, workspace_bytes
        self.arrays = {
            "y": aligned(np.full((m + 1) * n * 2, 0xFF, np.uint8)),
            "workspace": aligned(np.full(workspace_bytes + 256, 0xFF, np.uint8)),
        }

    def result(self, dtype: np.dtype) -> Array:
        """A copy of y, after checking the guards."""
        y = self.arrays["y"]
        assert (y[self.m * self.n * 2 :] == 0xFF).all(), "written past y"
        assert (self.arrays["workspace"][self.size :] == 0xFF).all(), "written past the workspace"
        return y.view(dtype).reshape(self.m + 1, self.n)[: self.m].copy()


def run(library: ctypes.CDLL, linear: Linear, entries: tuple[str, ...] = ("svdq_linear",)) -> Array:
    """y [M, N_out]."""
    (m, k), n, r = linear.x.shape, linear.bias.shape[0], linear.lora_down.shape[0]
    size = ctypes.c_size_t()
    assert library.svdq_workspace_bytes(linear.fmt.index, m, n, k, r, ctypes.byref(size)) == 0
    output = Output(m, linear.activation.n_out(n), size.value)
    arrays = operands(linear) | output.arrays
    p = params(linear, arrays, size.value)
    for entry in entries:
        assert getattr(library, entry)(ctypes.byref(p), None) == 0
    return output.result(linear.x.dtype)


def run_mlp(library: ctypes.CDLL, mlp: Mlp) -> Array:
    """y [M, N]; fc1's y and fc2's x are no pointers."""
    m, n = mlp.fc1.x.shape[0], mlp.fc2.bias.shape[0]
    arrays = [operands(mlp.fc1), operands(mlp.fc2)]
    del arrays[1]["x"]
    p = MlpParams(fc1=params(mlp.fc1, arrays[0]), fc2=params(mlp.fc2, arrays[1]))
    size = ctypes.c_size_t()
    assert library.svdq_mlp_workspace_bytes(ctypes.byref(p), ctypes.byref(size)) == 0
    output = Output(m, n, size.value)
    p.fc2.y, p.workspace = (output.arrays[name].ctypes.data for name in ("y", "workspace"))
    p.workspace_bytes = size.value
    assert library.svdq_mlp(ctypes.byref(p), None) == 0
    return output.result(mlp.fc1.x.dtype)


def last_launch(library: ctypes.CDLL) -> tuple[int, int, int]:
    """(tiles, splits of K, threads) of the last kernel that ran: gemm."""
    out = [ctypes.c_int() for _ in range(3)]
    library.emulation_last_launch(*map(ctypes.byref, out))
    return out[0].value, out[1].value, out[2].value


def launches(library: ctypes.CDLL) -> int:
    """Kernels that have run so far."""
    return int(ctypes.c_int.in_dll(library, "emulation_launches").value)
