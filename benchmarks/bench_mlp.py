"""Time svdq_mlp against two calls of svdq_linear, on the feed-forwards of models, same run, same GPU.

    python benchmarks/bench_mlp.py --rank 32 --out mlp.json
    python benchmarks/bench_mlp.py --format int4 --only sdxl

As in bench_linear.py: CUDA graphs of calls that walk through sets of operands larger than the L2, medians of a call.
`quantize1`, `gemm1`, `quantize2`, `gemm2` are the two linears' kernels alone, `chain` all four, `mlp` the one call.
Workspace: the chain's is the hidden and the larger of both linears'.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict
from typing import Any

import bench_options as options
import kernel_calls as calls
import script
import shapes
import torch
from bench_linear import Body, geomean, ours, time_together


def largest_difference(mlp: calls.MlpCall) -> float:
    """Largest difference of y from the chain's, relative to its largest element; fc2's t sums in another order."""
    mlp.run_chain()
    want = mlp.fc2.y.float().clone()
    mlp.fc2.y.fill_(float("nan"))
    mlp.run()
    return float((mlp.fc2.y.float() - want).abs().max() / want.abs().max())


def bench(library: calls.Library, ff: shapes.FeedForward, fmt: str, args: argparse.Namespace) -> dict[str, Any]:
    """Time everything for one feed-forward."""
    dtype = options.DTYPES[args.dtype]
    first = ours(library, ff.fc1, args.rank, dtype, fmt, ff.activation)
    second = ours(library, ff.fc2, args.rank, dtype, fmt, xs=[linear.y for linear in first])
    mlps = [calls.bind_mlp(fc1, fc2) for fc1, fc2 in zip(first, second, strict=True)]
    difference = max(largest_difference(mlp) for mlp in mlps)
    if not difference < 0.02:  # 16-bit rounding of t and y; NaN fails too
        raise RuntimeError(f"{ff.fc1.name}, {fmt}: svdq_mlp differs from two linears by {difference:.3g}")
    bodies = {
        "quantize1": Body([linear.runner("svdq_linear_quantize") for linear in first]),
        "gemm1": Body([linear.runner("svdq_linear_gemm") for linear in first]),
        "quantize2": Body([linear.runner("svdq_linear_quantize") for linear in second]),
        "gemm2": Body([linear.runner("svdq_linear_gemm") for linear in second]),
        "chain": Body([mlp.run_chain for mlp in mlps]),
        "mlp": Body([mlp.run for mlp in mlps]),
    }
    times = time_together(bodies, args.seconds, args.warm)
    fc1, fc2 = first[0], second[0]
    return {
        "fc1": asdict(ff.fc1),
        "fc2": asdict(ff.fc2),
        "activation": ff.activation,
        "format": fmt,
        "us": {name: asdict(t) for name, t in times.items()},
        "ratio": times["chain"].median / times["mlp"].median,
        "difference": difference,
        "workspace": {
            "chain": fc1.y.nbytes + max(fc1.params.workspace_bytes, fc2.params.workspace_bytes),
            "mlp": mlps[0].params.workspace_bytes,
        },
    }


def report(rows: list[dict[str, Any]]) -> str:
    """Format the table."""
    names = ("quantize1", "gemm1", "quantize2", "gemm2", "chain", "mlp")
    lines = [f"{'feed-forward':16}{'format':>8}" + "".join(f"{n:>10}" for n in names) + f"{'ratio':>8}  workspace, MB"]
    for row in rows:
        times = "".join(f"{row['us'][n]['median']:10.1f}" for n in names)
        memory = " -> ".join(f"{row['workspace'][n] / 1e6:.1f}" for n in ("chain", "mlp"))
        lines.append(f"{row['fc1']['name']:16}{row['format']:>8}{times}{row['ratio']:8.3f}  {memory}")
    lines.append(f"geomean {geomean([row['ratio'] for row in rows]):.3f}x the chain")
    return "\n".join(lines)


def main() -> None:
    """Parse, measure, print, write."""
    parser = options.make_parser(__doc__, "fc1's name", seconds=0.1, warm=0.1)
    options.add_dtype(parser)
    parser.add_argument("--format", nargs="+", default=["int4", "nvfp4"], choices=("int4", "nvfp4"))
    args, library = options.parse(parser)
    chosen = [ff for ff in shapes.FEED_FORWARDS if args.only in ff.fc1.name]
    if not chosen:
        parser.error(f"--only {args.only}: no feed-forward has that name")
    rows = []
    for fmt in args.format:
        for ff in chosen:
            rows.append(bench(library, ff, fmt, args))
            torch.cuda.empty_cache()
    print(f"{torch.cuda.get_device_name()}, R = {args.rank}, {args.dtype}, us per call")
    print(report(rows))
    options.save(args, ("rank", "dtype", "warm"), rows)


if __name__ == "__main__":
    script.run(main)
