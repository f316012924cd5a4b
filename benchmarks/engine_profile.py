#!/usr/bin/env python3
"""The parts of engines' time: kernels by kind, from the output of ``bench_engine.py --profile``.

    python benchmarks/bench_engine.py --model sdxl --formats fp16,w4a8 --profile --work /tmp/work ...
    python benchmarks/engine_profile.py /tmp/work/fp16 /tmp/work/w4a8 --out profile.json

Kinds and account are those of `svdq-trt bench` (svdq_trt/bench/kinds.py). It is one run outside a CUDA graph, under a
profiler: compare kinds, and take the latency from bench_engine.py.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import script

from svdq_trt.bench.kinds import GAPS, KINDS, by_kind, kind_of


def main() -> None:
    """Print one column per folder."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("folders", type=Path, nargs="+", metavar="WORK/FORMAT")
    p.add_argument("--top", type=int, default=0, metavar="N", help="also the N longest kernels of each")
    p.add_argument("--out", type=Path, metavar="JSON")
    args = p.parse_args()
    profiles = {str(f): json.loads((f / "profile.json").read_text())["kernels_us"] for f in args.folders}
    tables = {name: by_kind(kernels) for name, kernels in profiles.items()}
    print(f"{'kernels and ms':24}" + "".join(f"{name[-22:]:>24}" for name in tables))
    for kind in (*KINDS, GAPS):
        print(f"{kind:24}" + "".join(f"{t[kind]['count']:12} {t[kind]['ms']:11.3f}" for t in tables.values()))
    sums = [(sum(r["count"] for r in t.values()), sum(r["ms"] for r in t.values())) for t in tables.values()]
    print(f"{'all':24}" + "".join(f"{count:12} {ms:11.3f}" for count, ms in sums))
    for name, kernels in profiles.items() if args.top else ():
        print(f"\n{name}")
        for kernel, us, _ in sorted(kernels, key=lambda k: -k[1])[: args.top]:
            print(f"  {us:9.1f} us  {kind_of(kernel):22} {kernel[:90]}")
    if args.out:
        args.out.write_text(json.dumps(tables, indent=1) + "\n")


if __name__ == "__main__":
    script.run(main)
