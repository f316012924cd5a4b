#!/usr/bin/env python3
"""What each layer's quantization error does to the model's output, and whether that adds up to the whole.

    python benchmarks/error_budget.py --model sdxl-tiny --format w4a8
    python benchmarks/error_budget.py --model sdxl --format w4a8 --device cuda    # minutes on a GPU

Each node is quantized alone in the 16-bit model, and the change of the output measured. If the errors were independent
and small, the powers of these changes would add up to that of the quantized model: the prediction. dB of output power
over error power.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

from engine_bench.model import inputs_of, quantize, random_module

from svdq_trt.models import get_model
from svdq_trt.spec.formats import FORMATS
from svdq_trt.spec.ops import op_type


def decibels(signal: float, noise: float) -> float:
    """10 log10(signal / noise)."""
    return float(10 * torch.log10(torch.tensor(signal / max(noise, 1e-300), dtype=torch.float64)))


@torch.no_grad()
def measure(name: str, fmt: str, rank: int, device: str, smallest: bool) -> dict[str, Any]:
    """Powers of the output and of its changes; per node and together."""
    spec = get_model(name)
    if device == "cuda":
        from svdq_trt.nn import ops

        ops.linear.register_kernel("cuda")(ops.linear._init_fn)  # the reference body: no kernel library needed
    plain = random_module(spec, 0, device)
    whole = copy.deepcopy(plain)
    groups = {g.node: g for g in spec.groups(plain)}
    nodes = quantize(whole, spec, FORMATS[fmt], rank)
    for module in (plain, whole):  # f32 around the nodes: 16-bit rounding would count once per node
        torch.nn.Module.to(module, torch.float32)
    inputs = tuple(t.float() for t in inputs_of(spec, spec.profile.sizes(0 if smallest else 1), device))
    want = spec.wrap(plain)(*inputs).double()

    def noise(module: torch.nn.Module) -> float:
        return float((spec.wrap(module)(*inputs).double() - want).square().sum())

    signal, alone = float(want.square().sum()), []
    for i, node in enumerate(nodes, 1):
        module = copy.deepcopy(plain)
        spec.install(module, groups[node.name], whole.get_submodule(node.name))
        alone.append({"node": node.name, "op": op_type(FORMATS[node.format]), "layer_db": node.sqnr_db,
                      "output_db": decibels(signal, noise(module))})  # fmt: skip
        print(f"\r{i}/{len(nodes)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    total = sum(10 ** (-row["output_db"] / 10) for row in alone)
    return {
        "model": name, "format": fmt, "rank": rank, "nodes": alone,
        "layers_mean_db": sum(row["layer_db"] for row in alone) / len(alone),
        "predicted_db": decibels(1.0, total), "measured_db": decibels(signal, noise(whole)),
    }  # fmt: skip


def main() -> None:
    """Print the sums and the nodes that matter most."""
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="sdxl-tiny")
    p.add_argument("--format", default="w4a8", choices=list(FORMATS))
    p.add_argument("--rank", type=int, default=32)
    p.add_argument("--device", default="cpu", choices=("cpu", "cuda"))
    p.add_argument("--smallest", action="store_true", help="inputs at the profile's minimum, not its optimum")
    p.add_argument("--top", type=int, default=8, metavar="N", help="nodes to list")
    p.add_argument("--out", type=Path, metavar="JSON")
    args = p.parse_args()
    found = measure(args.model, args.format, args.rank, args.device, args.smallest)
    for row in sorted(found["nodes"], key=lambda row: row["output_db"])[: args.top]:
        print(f"  {row['output_db']:6.1f} dB at the output, {row['layer_db']:5.1f} dB at the layer   {row['node']}")
    print(f"{args.model} {args.format} rank {args.rank}: layers {found['layers_mean_db']:.1f} dB (mean), output "
          f"predicted {found['predicted_db']:.1f} dB, measured {found['measured_db']:.1f} dB")  # fmt: skip
    if args.out:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
