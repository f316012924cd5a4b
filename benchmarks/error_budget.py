#!/usr/bin/env python3
"""The effect of each node's quantization error on the model's output, and whether these add up to the whole.

    python benchmarks/error_budget.py --model sdxl-tiny --format w4a8
    python benchmarks/error_budget.py --model sdxl --format w4a8 --device cuda    # minutes on a GPU

Each node is quantized alone in the 16-bit model, and the change in the output is measured. If the errors were
independent and small, the powers of these changes would add up to that of the quantized model: the prediction. dB of
output power over error power.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import script
import torch
from engine_bench.model import inputs_of, quantize, random_module

from svdq_trt.artifact.sensitivity import Sensitivity
from svdq_trt.build.scan import worst
from svdq_trt.contract.formats import FORMATS
from svdq_trt.models import get_model
from svdq_trt.nn.linear import SVDQLinear
from svdq_trt.quantize.sensitivity import Probe, scan


@torch.no_grad()
def measure(name: str, fmt: str, rank: int, device: str, smallest: bool) -> Sensitivity:
    """Measure every node alone, and all together."""
    spec = get_model(name)
    plain, whole = random_module(spec, 0, device), random_module(spec, 0, device)
    groups = spec.groups(plain)
    nodes = quantize(whole, spec, FORMATS[fmt], rank)
    layers: dict[str, SVDQLinear] = {}
    for node in nodes:
        layer = whole.get_submodule(node.name)
        assert isinstance(layer, SVDQLinear)
        layers[node.name] = layer
    torch.nn.Module.to(plain, torch.float32)
    sizes = spec.profile.sizes(0 if smallest else 1)
    probe = Probe(plain, spec, groups, [tuple(t.float() for t in inputs_of(spec, sizes, device))])
    effects = []
    for effect in scan(probe, layers, {node.name: node.sqnr_db for node in nodes}, {}):
        effects.append(effect)
        print(f"\r{len(effects)}/{len(nodes)}", end="", file=sys.stderr, flush=True)
    print(file=sys.stderr)
    inputs = "the profile's smallest" if smallest else "the profile's optimum"
    return Sensitivity(name, fmt, rank, "bench", inputs, tuple(effects), probe.output_db(layers))


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
    for effect in worst(found.effects, args.top):
        print(f"  {effect.output_db:6.1f} dB at the output, {effect.layer_db:5.1f} dB at the layer   {effect.node}")
    mean = sum(effect.layer_db for effect in found.effects) / len(found.effects)
    print(
        f"{args.model} {args.format} rank {args.rank}: layers {mean:.1f} dB (mean), output predicted "
        f"{found.predicted_db:.1f} dB, measured {found.measured_db:.1f} dB"
    )
    if args.out:
        found.save(args.out)


if __name__ == "__main__":
    script.run(main)
