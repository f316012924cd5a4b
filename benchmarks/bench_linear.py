"""Time the quantized linear against bf16 cuBLAS and fp8 cuBLASLt, same run, same GPU.

    python benchmarks/bench_linear.py --format w4a8 --rank 32 --out linear.json
    python benchmarks/bench_linear.py --only flux_out --m 1 16 256 1024 16384   # a range of tokens

Each timed body is a CUDA graph of calls that walk through several sets of inputs, weights and
outputs, together larger than the L2, so nothing is warm that would be cold in a model. Before it is
timed, a body runs by itself for --warm seconds: a large product draws more than the card's power limit
within milliseconds, and a model's steps run at the clock that remains, not at that of a card that has just
done something lighter. With --cold-l2 every call is timed by itself instead, after a kernel that has
just overwritten the L2: that adds the latency of a launch to all of them. Reported: median, p10 and
p90 of a call. The rivals get their input in their own dtype for free and have no bias; ours starts from
16-bit x and includes bias and rank R. NF4 (bitsandbytes) is measured where it can be imported.
"""

from __future__ import annotations

import argparse
import math
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import bench_options as options
import kernel_calls as calls
import script
import shapes
import torch

SMALL = 2_000_000  # weights below which --skip '<2M' leaves a linear in 16 bit
BYTES_TO_ROTATE = 192e6  # more than three times an H200's L2
MAX_SETS = 48

Timed = Callable[[], object]  # enqueues something on the current stream


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call."""

    median: float
    p10: float
    p90: float

    @classmethod
    def of(cls, times: list[float]) -> Timing:
        """Summarize times in microseconds."""
        us = sorted(times)
        return cls(statistics.median(us), us[len(us) // 10], us[-1 - len(us) // 10])


class ColdBody:
    """Calls one at a time, each after a kernel that overwrites the L2; microseconds of each."""

    def __init__(self, calls: Sequence[Timed]) -> None:
        """Run one call and keep all calls."""
        self.calls, self.us = calls, list[float]()
        self.flood = torch.empty(2**28, device="cuda", dtype=torch.uint8)
        calls[0]()
        torch.cuda.synchronize()

    def run(self, seconds: float, warm: float) -> None:
        """Run for about `seconds` of the GPU's time; the flood hides the host's. Single calls need no `warm`."""
        marks = []
        for i in range(max(8, int(seconds / 300e-6))):
            self.flood.fill_(i & 1)
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            self.calls[i % len(self.calls)]()
            end.record()
            marks.append((begin, end))
        torch.cuda.synchronize()
        self.us += [a.elapsed_time(b) * 1e3 for a, b in marks]

    def timing(self) -> Timing:
        """Timing over everything that run() has recorded."""
        return Timing.of(self.us)


class Body:
    """A CUDA graph of calls, and the microseconds of one call in each of its replays so far."""

    def __init__(self, calls: Sequence[Timed]) -> None:
        """Run two of the calls once, then capture all; the calls keep their tensors alive."""
        self.kept = calls
        for call in calls[:2]:
            call()
        torch.cuda.synchronize()
        self.calls = len(calls)
        self.us: list[float] = []
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            for call in calls:
                call()
        self.once_s = self._replay(1)[0] * self.calls * 1e-6

    def _replay(self, times: int) -> list[float]:
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(times + 1)]
        marks[0].record()
        for mark in marks[1:]:
            self.graph.replay()
            mark.record()
        torch.cuda.synchronize()
        return [a.elapsed_time(b) * 1e3 / self.calls for a, b in pairwise(marks)]

    def run(self, seconds: float, warm: float) -> None:
        """Replay for about `seconds`, after `warm` seconds of the same that do not count."""
        self._replay(max(1, int(warm / self.once_s)))
        self.us += self._replay(max(4, int(seconds / self.once_s)))

    def timing(self) -> Timing:
        """Timing over everything that run() has recorded."""
        return Timing.of(self.us)


def time_together(
    bodies: Mapping[str, Body | ColdBody], seconds: float, warm: float, rounds: int = 2
) -> dict[str, Timing]:
    """Time all bodies in turn, forwards and backwards: clocks drift with the heat, and none should always be first."""
    for i in range(rounds):
        for body in list(bodies.values())[:: -1 if i % 2 else 1]:
            body.run(seconds / rounds, warm)
    return {name: body.timing() for name, body in bodies.items()}


def sets_for(bytes_per_set: float) -> int:
    """Number of sets of operands that together exceed the L2."""
    return max(2, min(MAX_SETS, math.ceil(BYTES_TO_ROTATE / bytes_per_set)))


def ours(
    library: calls.Library,
    shape: shapes.Shape,
    rank: int,
    dtype: torch.dtype,
    fmt: str,
    activation: str = "none",
    xs: list[torch.Tensor] | None = None,
) -> list[calls.LinearCall]:
    """Draw random linears of the shape: valid codes and scales, no quantizer needed for timing.

    One for each of the inputs `xs` [M, K]; without `xs`, as many as exceed the L2, with inputs of their own.
    """
    m, k, n = shape.m, shape.k, shape.n
    if xs is None:
        base = torch.randn(m, k, device="cuda", dtype=dtype)
        sets = sets_for(m * k * 2 + n * k / 2 + m * n * 2 + m * k)
        xs = [base.roll(i, 0).contiguous() for i in range(sets)]
    linears = []
    for x in xs:
        nibbles = torch.randint(-7, 8, (2, n, k // 2), device="cuda", dtype=torch.int8)
        qweight = (nibbles[0] & 15) | (nibbles[1] << 4)
        if fmt == "w4a8":
            wscale = torch.randint(6, 19, (k // 64, n), device="cuda", dtype=torch.int8)
            wscale2 = torch.full((n,), k**-0.5 / 50, device="cuda")
        elif fmt == "nvfp4":
            wscale = torch.full((k // 64, n, 4), 0x38, device="cuda", dtype=torch.int8)  # 1 in e4m3
            wscale2 = torch.full((n,), k**-0.5 / 3, device="cuda")
        else:
            wscale = torch.full((k // 64, n), k**-0.5 / 4, device="cuda", dtype=dtype)
            wscale2 = torch.ones(n, device="cuda")
        linears.append(
            calls.bind_linear(
                library,
                fmt,
                x=x,
                qweight=qweight,
                wscale=wscale,
                act_mul=torch.rand(k, device="cuda", dtype=dtype) + 0.5,
                lora_down=torch.randn(rank, k, device="cuda", dtype=dtype) * k**-0.5,
                lora_up=torch.randn(n, rank, device="cuda", dtype=dtype),
                bias=torch.randn(n, device="cuda", dtype=dtype),
                wscale2=wscale2,
                activation=activation,
            )
        )
    return linears


def cublas_bf16(shape: shapes.Shape) -> list[Timed]:
    """Calls of bf16 x · Wᵀ through torch, without bias."""
    m, k, n = shape.m, shape.k, shape.n
    calls: list[Timed] = []
    for _ in range(sets_for(2 * (m * k + n * k + m * n))):
        x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        w = torch.randn(n, k, device="cuda", dtype=torch.bfloat16)
        y = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
        calls.append(partial(torch.mm, x, w.t(), out=y))
    return calls


def cublas_fp8(shape: shapes.Shape) -> list[Timed]:
    """Calls of e4m3 x · Wᵀ through torch._scaled_mm, input already in fp8, bf16 output."""
    m, k, n = shape.m, shape.k, shape.n
    one = torch.ones((), device="cuda")
    calls: list[Timed] = []
    for _ in range(sets_for(m * k + n * k + 2 * m * n)):
        x = torch.randn(m, k, device="cuda").to(torch.float8_e4m3fn)
        w = torch.randn(n, k, device="cuda").to(torch.float8_e4m3fn)
        y = torch.empty(m, n, device="cuda", dtype=torch.bfloat16)
        calls.append(
            partial(torch._scaled_mm, x, w.t(), one, one, out_dtype=torch.bfloat16, use_fast_accum=True, out=y)
        )
    return calls


def bitsandbytes_nf4(shape: shapes.Shape) -> list[Timed]:
    """Calls with NF4 weights and bf16 input through bitsandbytes; empty where it is not installed."""
    try:
        import bitsandbytes as bnb
    except ImportError:
        return []
    m, k, n = shape.m, shape.k, shape.n
    calls: list[Timed] = []
    for _ in range(sets_for(2 * (m * k + m * n) + n * k / 2)):
        x = torch.randn(m, k, device="cuda", dtype=torch.bfloat16)
        w = torch.randn(n, k, device="cuda", dtype=torch.bfloat16)
        packed, state = bnb.functional.quantize_4bit(w, quant_type="nf4")
        calls.append(partial(bnb.matmul_4bit, x, packed.t(), quant_state=state))
    return calls


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a large copy by a kernel (a graph's memcpy node is slower)."""
    a = torch.ones(2**30, device="cuda", dtype=torch.float32)
    b = torch.empty_like(a)
    seconds: list[float] = []
    for _ in range(12):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        torch.neg(a, out=b)
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) * 1e-3)
    return 2 * a.numel() * 4 / statistics.median(seconds[2:])


def bench(library: calls.Library, shape: shapes.Shape, args: argparse.Namespace) -> dict[str, Any]:
    """Time everything for one shape."""
    dtype = options.DTYPES[args.dtype]
    linears = ours(library, shape, args.rank, dtype, args.format)
    plain = ours(library, shape, 0, dtype, args.format)
    for linear in linears:
        linear.run()  # so that gemm alone reads real codes
    calls: dict[str, Sequence[Timed]] = {
        "bf16": cublas_bf16(shape),
        "fp8": cublas_fp8(shape) if shape.m % 16 == 0 else [],
        "nf4": bitsandbytes_nf4(shape),
        "quantize": [linear.runner("svdq_linear_quantize") for linear in linears],
        "gemm": [linear.runner("svdq_linear_gemm") for linear in linears],
        "total": [linear.runner() for linear in linears],
        "rank0": [linear.runner() for linear in plain],
    }
    kind = ColdBody if args.cold_l2 else Body
    times = time_together({name: kind(c) for name, c in calls.items() if c}, args.seconds, args.warm)
    return {"shape": asdict(shape), "us": {k: asdict(t) for k, t in times.items()}}


def geomean(values: list[float]) -> float:
    """The geometric mean."""
    return math.exp(sum(map(math.log, values)) / len(values))


def report(rows: list[dict[str, Any]], copy: float) -> str:
    """Format the table; sets each row's ratio."""
    head = f"{'linear':16}{'bf16':>8}{'fp8':>8}{'nf4':>8}{'quantize':>10}{'gemm':>8}{'total':>8}{'rank0':>8}"
    lines = [head + f"{'x bf16':>8}{'fp8:gemm':>10}{'rank':>7}{'of copy':>9}{'TOPS':>7}"]
    for row in rows:
        s, us = row["shape"], {k: v["median"] for k, v in row["us"].items()}
        share = 3 * s["m"] * s["k"] / (us["quantize"] * 1e-6) / copy
        tops = 2e-6 * s["m"] * s["k"] * s["n"] / us["gemm"]
        row["ratio"] = us["bf16"] / us["total"]
        fp8, nan = us.get("fp8", math.nan), math.nan
        lines.append(
            f"{s['name']:16}{us['bf16']:8.1f}{fp8:8.1f}{us.get('nf4', nan):8.1f}{us['quantize']:10.1f}{us['gemm']:8.1f}"
            f"{us['total']:8.1f}{us['rank0']:8.1f}{row['ratio']:8.2f}{fp8 / us['gemm']:10.2f}"
            f"{us['total'] / us['rank0'] - 1:7.1%}{share:9.0%}{tops:7.0f}"
        )
    for label, models in (("FLUX.1", {"FLUX.1"}), ("SDXL + PixArt", {"SDXL", "PixArt"}), ("SANA", {"SANA"})):
        chosen = [r for r in rows if r["shape"]["model"] in models]
        if chosen:
            ratios = [r["ratio"] for r in chosen]
            line = f"{label}: geomean {geomean(ratios):.3f}x bf16, worst {min(ratios):.2f}x"
            if all("fp8" in r["us"] for r in chosen):
                relative = [r["us"]["fp8"]["median"] / r["us"]["gemm"]["median"] for r in chosen]
                line += f"; gemm alone {geomean(relative):.2f}x fp8, worst {min(relative):.2f}x"
            mixed = [1.0 if r["shape"]["k"] * r["shape"]["n"] < SMALL else r["ratio"] for r in chosen]
            if mixed != ratios:
                line += f"; with the small ones in 16 bit {geomean(mixed):.3f}x, worst {min(mixed):.2f}x"
            lines.append(line)
    return "\n".join(lines)


def plot(rows: list[dict[str, Any]], path: Path) -> None:
    """Plot the speed-up over bf16 cuBLAS as bars, if matplotlib is installed."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        import matplotlib.pyplot as plt
    except ImportError:
        print("no matplotlib: no plot", file=sys.stderr)
        return
    names = [f"{r['shape']['name']}\nM={r['shape']['m']}" for r in rows]
    fig, ax = plt.subplots(figsize=(10, 4))
    ax.bar(names, [r["ratio"] for r in rows], label="w4a8, all included")
    fp8 = [r["us"]["bf16"]["median"] / r["us"].get("fp8", {"median": math.nan})["median"] for r in rows]
    ax.plot(names, fp8, "k_", ms=18, label="fp8 cuBLASLt, input already fp8")
    ax.axhline(1, color="gray", lw=1)
    ax.set_ylabel("speed-up over bf16 cuBLAS")
    ax.tick_params(axis="x", rotation=60)
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)
    fig.tight_layout()
    fig.savefig(path, dpi=120)


def main() -> None:
    """Parse, measure, print, write."""
    parser = options.make_parser(__doc__, "the shapes' names", seconds=0.1, warm=0.2)
    options.add_dtype(parser)
    parser.add_argument("--format", default="w4a8", choices=("int4", "w4a8", "nvfp4", "w4a16"))
    parser.add_argument("--m", type=int, nargs="+", default=[], help="tokens, instead of each shape's own")
    parser.add_argument("--cold-l2", action="store_true", help="each call alone, its operands not in the L2")
    args, library = options.parse(parser)
    copy = copy_bandwidth()
    rows = []
    for shape in shapes.ALL:
        if args.only in shape.name:
            for m in args.m or [shape.m]:
                rows.append(bench(library, replace(shape, m=m), args))
                torch.cuda.empty_cache()
    table = report(rows, copy)
    gpu = torch.cuda.get_device_name()
    print(f"{gpu}, copy {copy / 1e12:.2f} TB/s, R = {args.rank}, {args.dtype}, us per call")
    print(table)
    options.save(args, ("format", "rank", "dtype", "cold_l2", "warm"), rows, copy_bytes_per_s=copy)
    if args.out:
        plot(rows, args.out.with_suffix(".png"))


if __name__ == "__main__":
    script.run(main)
