"""Time w4a16 linears with few tokens against the memory's own speed and against bf16 cuBLAS.

    python benchmarks/bench_gemv.py                       # adaLN linears, M = 1 to 16
    python benchmarks/bench_gemv.py --only sdxl --out gemv.json

Graphs of calls over more weights than the L2 holds; median, p10, p90 of one call. `copy` is the share of the
bandwidth of a large copy, measured in the same run, that the bytes of the 4-bit weight (codes and scales) take
in the time of the whole linear: bias, low-rank branch and launches included.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, TypedDict

import bench_linear as timing
import bench_options as options
import kernel_calls as calls
import script
import torch


class Made(TypedDict):
    """Where a tensor is made, and of what."""

    device: str
    dtype: torch.dtype


BF16: Made = {"device": "cuda", "dtype": torch.bfloat16}


@dataclass(frozen=True)
class Gemv:
    """A weight [N, K] of a model and the numbers of tokens to time it with."""

    name: str
    n: int
    k: int
    tokens: tuple[int, ...]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the codes and of the 16-bit scales of groups of 64."""
        return self.n * self.k // 2 + self.n * self.k // 64 * 2


BATCHES = (1, 2, 4, 8, 16)
PROMPTS = (77, 154, 308, 512)  # 77 tokens per prompt, with and without guidance; 512 for T5
GEMVS = (
    Gemv("flux_adaln", 18432, 3072, BATCHES),
    Gemv("flux_single_adaln", 9216, 3072, BATCHES),
    Gemv("flux_time_embed", 3072, 3072, (1, 16)),
    Gemv("pixart_adaln", 6912, 1152, (1, 2)),
    Gemv("sdxl_time_embed", 1280, 1280, (2,)),
    Gemv("sdxl640_cross_kv", 1280, 2048, PROMPTS),
    Gemv("sdxl1280_cross_kv", 2560, 2048, PROMPTS),
)


def quantized(library: calls.Library, gemv: Gemv, m: int, rank: int) -> list[calls.LinearCall]:
    """Make random linears: any codes, scales that keep y near 1."""
    n, k = gemv.n, gemv.k
    linears = []
    for _ in range(timing.sets_for(gemv.weight_bytes)):
        linears.append(
            calls.bind_linear(
                library,
                "w4a16",
                x=torch.randn(m, k, **BF16),
                qweight=torch.randint(-128, 128, (n, k // 2), device="cuda", dtype=torch.int8),
                wscale=torch.full((k // 64, n), k**-0.5 / 4, **BF16),
                act_mul=torch.rand(k, **BF16) + 0.5,
                lora_down=torch.randn(rank, k, **BF16) * k**-0.5,
                lora_up=torch.randn(n, rank, **BF16),
                bias=torch.randn(n, **BF16),
                wscale2=torch.ones(n, device="cuda"),
            )
        )
    return linears


def cublas(gemv: Gemv, m: int) -> list[timing.Timed]:
    """Calls of bf16 x · Wᵀ + bias through torch."""
    found: list[timing.Timed] = []
    for _ in range(timing.sets_for(2 * gemv.n * gemv.k)):
        x, w = torch.randn(m, gemv.k, **BF16), torch.randn(gemv.n, gemv.k, **BF16)
        y, bias = torch.empty(m, gemv.n, **BF16), torch.randn(gemv.n, **BF16)
        found.append(partial(torch.addmm, bias, x, w.t(), out=y))
    return found


def bench(library: calls.Library, gemv: Gemv, m: int, args: argparse.Namespace) -> dict[str, Any]:
    """Time everything for one weight and M."""
    full, plain = quantized(library, gemv, m, args.rank), quantized(library, gemv, m, 0)
    bodies = {
        "bf16": timing.Body(cublas(gemv, m)),
        "total": timing.Body([linear.runner() for linear in full]),
        "quantize": timing.Body([linear.runner("svdq_linear_quantize") for linear in full]),
        "gemm": timing.Body([linear.runner("svdq_linear_gemm") for linear in full]),
        "rank0": timing.Body([linear.runner() for linear in plain]),
    }
    times = timing.time_together(bodies, args.seconds, args.warm)
    return {"gemv": asdict(gemv), "m": m, "us": {name: asdict(t) for name, t in times.items()}}


def main() -> None:
    """Parse, measure, print, write."""
    parser = options.make_parser(__doc__, "the weights' names", seconds=0.05, warm=0.0125)
    args, library = options.parse(parser)
    copy = timing.copy_bandwidth()
    print(f"{torch.cuda.get_device_name()}: copy {copy * 1e-12:.2f} TB/s; us, R = {args.rank}")
    print(
        f"{'weight':18}{'M':>4}{'bf16':>8}{'total':>8}{'p10':>7}{'p90':>7}{'quantize':>10}{'gemm':>7}{'rank0':>8}",
        end="",
    )
    print(f"{'copy':>7}{'rank0':>7}{'x bf16':>8}")
    rows = []
    for gemv in (g for g in GEMVS if args.only in g.name):
        for m in gemv.tokens:
            row = bench(library, gemv, m, args)
            us = {name: t["median"] for name, t in row["us"].items()}
            row["share_of_copy"], row["share_of_copy_rank0"] = (
                gemv.weight_bytes / (us[body] * 1e-6) / copy for body in ("total", "rank0")
            )
            total = row["us"]["total"]
            print(
                f"{gemv.name:18}{m:4}{us['bf16']:8.1f}{us['total']:8.2f}{total['p10']:7.2f}{total['p90']:7.2f}"
                f"{us['quantize']:10.2f}{us['gemm']:7.2f}{us['rank0']:8.2f}{row['share_of_copy']:7.0%}"
                f"{row['share_of_copy_rank0']:7.0%}{us['bf16'] / us['total']:8.2f}",
                flush=True,
            )
            rows.append(row)
    options.save(args, ("rank", "warm"), rows, copy_bytes_per_s=copy)


if __name__ == "__main__":
    script.run(main)
