#!/usr/bin/env python3
"""The parts of engines' time: kernels by kind, from the output of ``bench_engine.py --profile``.

    python benchmarks/bench_engine.py --model sdxl --formats fp16,w4a8 --profile --work /tmp/work ...
    python benchmarks/engine_profile.py /tmp/work/fp16 /tmp/work/w4a8 --out profile.json

Kernels overlap: ours start before their predecessor has ended. So a kernel counts with the time by which it moved the
end of the run; these times and the gaps add up to the run. It is one run outside a CUDA graph, under a profiler:
compare kinds, and take the latency from bench_engine.py.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

#: kind -> pattern of kernel names; first match wins
KINDS = {
    "attention": r"_mha_|svdq::.*(attention|prepare_kernel)",
    "ours: quantize": r"svdq::.*(quantize|lora_down)",
    "ours: product": r"svdq::",
    "convolution": r"convFwd",
    "matmul": r"matMul|gemm",
    "norm": r"Gnor|MeanSub|MulMean",
    "rotary": r"Cos|Sin|MulSub",
    "copy around attention": r"__myl_((Slic|Resh|Tran|Move|Mul|Conc)+)(Etc)?_",
    "other": r"",
}


def kind_of(kernel: str) -> str:
    """The first kind whose pattern the name has."""
    return next(kind for kind, pattern in KINDS.items() if re.search(pattern, kernel))


def by_kind(kernels: list[tuple[str, float, float]]) -> dict[str, dict[str, float]]:
    """Kind -> {count, ms} of (name, us, start) in order of start; "gaps" are the times in which nothing ran."""
    found = {kind: {"count": 0, "ms": 0.0} for kind in (*KINDS, "gaps")}
    end = 0.0
    for name, us, start in kernels:
        found["gaps"]["ms"] += max(0.0, start - end) / 1e3
        row = found[kind_of(name)]
        row["count"] += 1
        row["ms"] += max(0.0, start + us - max(end, start)) / 1e3
        end = max(end, start + us)
    return {kind: {"count": row["count"], "ms": round(row["ms"], 3)} for kind, row in found.items()}


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
    for kind in (*KINDS, "gaps"):
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
    main()
