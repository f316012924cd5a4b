"""Print the time of both kernels of each format on given sizes, beside the 16-bit matmul.

    python benchmarks/time_kernels.py 4608 3072 9216 32 2048 1280 1280 128   # M K N R, as often as wanted

A first look, seconds long, in bf16 and on one set of operands, which may stay in the L2; bench_linear.py is the
measurement.
"""

from __future__ import annotations

import argparse
import sys
from functools import partial

import kernel_calls as calls
import script
import torch
from bench_linear import Body, Timed, ours
from bench_options import need_gpu
from shapes import Shape

FORMATS = ("int4", "int4u", "w4a8", "nvfp4", "w4a16")  # int4u: unsigned activation codes
CALLS = 4  # in a graph


def graph_us(call: Timed) -> float:
    """Median time of one call in µs."""
    body = Body([call] * CALLS)
    body.run(seconds=20 * body.once_s, warm=3 * body.once_s)
    return body.timing().median


def main() -> None:
    """Print a block for each four numbers of the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("numbers", type=int, nargs="+", metavar="N", help="M K N R of a linear, as often as wanted")
    numbers, path = parser.parse_args().numbers, calls.find_library()
    if len(numbers) % 4:
        parser.error(f"{len(numbers)} numbers, want four for each linear: M K N R")
    if path is None:
        sys.exit("no libsvdq.so found")
    need_gpu()
    library = calls.Library(path)
    for i in range(0, len(numbers), 4):
        m, k, n, r = numbers[i : i + 4]
        x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        w, y = torch.randn(n, k, device="cuda", dtype=torch.bfloat16), torch.empty(m, n, device="cuda").bfloat16()
        print(f"m{m} k{k} n{n} r{r}  bf16 {graph_us(partial(torch.mm, x, w.T, out=y)):.1f} us")
        for name in FORMATS:
            (linear,) = ours(library, Shape("", "", m, k, n), r, torch.bfloat16, name.rstrip("u"), xs=[x])
            linear.params.act_unsigned = int(name == "int4u")
            a, b = (graph_us(linear.runner(f"svdq_linear_{half}")) for half in ("quantize", "gemm"))
            print(f"  {name:6} quantize {a:7.1f} us   gemm {b:7.1f} us   {2e-6 * m * n * k / b:6.0f} TOPS")


if __name__ == "__main__":
    script.run(main)
