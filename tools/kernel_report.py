"""Registers, shared memory and spills of every kernel, per architecture, from ptxas; exit status 1 on a spill.

    python tools/kernel_report.py                   # the portable kernels, for sm_80, 86, 89, 90a and 120f
    python tools/kernel_report.py --arch 89 --file int4 --sass --markdown

With --sass (needs cuobjdump): instructions per MMA in the loop that has most of them.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ROOT / "plugins" / "kernels"
ARCHS = ("80", "86", "89", "90a", "120f")
FOLDERS = ("portable", "gemv", "attention")
ENTRY = re.compile(r"Compiling entry function '(\w+)' for '\w+'(.*?)(?=Compiling entry|\Z)", re.S)


@dataclass(frozen=True)
class Kernel:
    """One compiled kernel; sizes in bytes, `per_mma` is None where it was not asked for or there is no MMA."""

    arch: str
    name: str
    registers: int
    static_shared: int
    spilled: int
    per_mma: float | None


def run(*command: str) -> str:
    """Run a command; returns both output streams, raises if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)}:\n{done.stderr}")
    return done.stdout + done.stderr


def readable(mangled: str) -> str:
    """Demangle a name to ``gemm_kernel<Int4<half, false>, Tile<128, 128, 2, 4>>``."""
    name = run("c++filt", mangled).strip()
    name = re.sub(r"^void |svdq::|portable::|gemv::|sm90::|\((?:svdq|portable|sm90|gemv).*", "", name)
    name = re.sub(r"\((?:int|bool|svdq_format)\)", "", name)
    return name.replace("__nv_bfloat16", "bf16").replace("__half", "f16").replace(" >", ">")


def per_mma(sass: str) -> float | None:
    """Instructions per MMA in the main loop: integer or block-scaled MMAs where there are any, else 16-bit ones."""
    lines = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", sass)
    kind = next((k for k in ("IMMA", "OMMA", "QMMA", "HMMA") if any(f"{k}." in text for _, text in lines)), None)
    loops = []
    for at, text in lines:
        target = re.search(r"\bBRA(?:\.\w+)*\s.*0x([0-9a-f]+)", text)
        if kind and target and int(target[1], 16) < int(at, 16):
            body = [t for a, t in lines if int(target[1], 16) <= int(a, 16) <= int(at, 16)]
            loops.append((sum(f"{kind}." in t for t in body), len(body)))
    most = max((mmas for mmas, _ in loops), default=0)
    return min((length / mmas for mmas, length in loops if 2 * mmas > most), default=None) if most else None


def compile_one(source: Path, arch: str, sass: bool) -> list[Kernel]:
    """Compile all kernels of one file for one architecture."""
    with tempfile.TemporaryDirectory() as folder:
        cubin = f"{folder}/{source.stem}.cubin"
        log = run(
            "nvcc",
            "-std=c++17",
            "-O3",
            f"-I{ROOT}/plugins",
            f"-I{ROOT}/plugins/include",
            "-Xptxas",
            "-v",
            "-cubin",
            f"-gencode=arch=compute_{arch},code=sm_{arch}",
            "-o",
            cubin,
            str(source),
        )
        code = (
            dict(re.findall(r"Function : (\w+)(.*?)(?=Function :|\Z)", run("cuobjdump", "-sass", cubin), re.S))
            if sass
            else {}
        )
    found = []
    for mangled, text in ENTRY.findall(log):
        shared = re.search(r"(\d+) bytes smem", text)
        found.append(
            Kernel(
                arch,
                readable(mangled),
                int(re.search(r"Used (\d+) registers", text)[1]),  # type: ignore[index]
                int(shared[1]) if shared else 0,
                int(re.search(r"(\d+) bytes spill stores", text)[1]),  # type: ignore[index]
                per_mma(code[mangled]) if mangled in code else None,
            )
        )
    return found


def main() -> int:
    """Compile, print the table, report spills."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--arch", action="append", help=f"such as 89; default {', '.join(ARCHS)}")
    parser.add_argument("--file", default="", help="part of a source file's name")
    parser.add_argument("--sass", action="store_true", help="instructions per MMA; needs cuobjdump")
    parser.add_argument("--markdown", action="store_true", help="one row per kernel, one column per architecture")
    parser.add_argument("--jobs", type=int, default=2)
    args = parser.parse_args()
    archs = args.arch or list(ARCHS)
    files = [f for folder in FOLDERS for f in KERNELS.glob(f"{folder}/*.cu")]
    sources = sorted(f for f in files if args.file in f.name)
    jobs = [(source, arch) for source in sources for arch in archs]
    with ThreadPoolExecutor(args.jobs) as pool:
        batches = list(pool.map(lambda job: compile_one(job[0], job[1], args.sass), jobs))
    kernels = [k for batch in batches for k in batch]
    if args.markdown:
        cells = {(k.name, k.arch): f"{k.registers}" + (f", {k.per_mma:.1f}" if k.per_mma else "") for k in kernels}
        print("| kernel | " + " | ".join(f"sm_{a}" for a in archs) + " |\n|---|" + "---|" * len(archs))
        for name in sorted({k.name for k in kernels}):
            print(f"| `{name}` | " + " | ".join(cells.get((name, a), "") for a in archs) + " |")
    else:
        for k in sorted(kernels, key=lambda k: (k.name, k.arch)):
            extra = f"  {k.per_mma:5.1f} instructions per MMA" if k.per_mma else ""
            print(f"sm_{k.arch:5}{k.registers:4} registers {k.static_shared:6} B shared{extra}  {k.name}")
    spilled = [k for k in kernels if k.spilled]
    for k in spilled:
        print(f"sm_{k.arch} {k.name}: {k.spilled} bytes spilled", file=sys.stderr)
    print(f"{len(kernels)} kernels, {len(spilled)} spill")
    return 1 if spilled or not kernels else 0


if __name__ == "__main__":
    sys.exit(main())
