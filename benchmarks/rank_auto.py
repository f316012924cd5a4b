#!/usr/bin/env python3
"""A rank for every node against one rank for all, at equal bytes, and the bytes that equal quality takes.

    python benchmarks/rank_auto.py [--model sdxl-tiny flux1-tiny] [--format int4 ...] [--rank 32] [--pixels 256]

Random weights with outliers. Predicted: the nodes' errors, weighed by a scan or alike, added up. Measured: the quantized
model in torch, float32 around the nodes, on inputs that neither calibration nor the scan saw.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from svdq_trt import calibrate
from svdq_trt.calibrate.inputs import synthetic
from svdq_trt.checkpoint import load
from svdq_trt.journal import Journal
from svdq_trt.models import get_model
from svdq_trt.nn.linear import SVDQLinear
from svdq_trt.quantize import artifact
from svdq_trt.quantize.allocate import Allocation, allocate, measure_curves
from svdq_trt.quantize.preset import get_preset
from svdq_trt.quantize.run import layer_of, quantize_model
from svdq_trt.quantize.sensitivity import Probe, Sensitivity, scan
from svdq_trt.spec.formats import FORMATS

SCAN_SEED, FRESH_SEED = 1, 2  # calibration's is 0


class Case:
    """One model in one format: calibrated, its curves measured."""

    def __init__(self, name: str, fmt: str, preset: str, pixels: int | None, work: Path) -> None:
        self.spec, self.format, self.preset, self.work = get_model(name), FORMATS[fmt], get_preset(preset), work
        self.module = load(self.spec, random_seed=0)
        self.groups = self.spec.groups(self.module)
        self.calibration = calibrate.collect(self.module, self.spec, self.groups, height=pixels, width=pixels)
        self.curves = measure_curves(self.module, self.groups, self.calibration, self.format, self.spec.torch_dtype,
                                     Journal(work / "curves", ""), lambda *_: None)  # fmt: skip
        px = pixels or self.spec.calibration_pixels
        probes = [Probe(self.module, self.spec, self.groups, list(synthetic(self.spec, 2, px, px, seed)))
                  for seed in (SCAN_SEED, FRESH_SEED)]  # fmt: skip
        self.scan_probe, self.probe = probes

    def quantize(self, ranks: dict[str, int]) -> tuple[dict[str, SVDQLinear], dict[str, float]]:
        """Layers and their own SQNR; nodes that are not in `ranks` stay in 16 bit."""
        shared = {id(t): t for t in (*self.module.parameters(), *self.module.buffers())}
        module: nn.Module = copy.deepcopy(self.module, shared)
        out = self.work / "svdq.safetensors"
        groups = [g for g in self.groups if g.node in ranks]
        quantize_model(module, self.spec, groups, self.calibration, self.format, ranks, self.preset, out, "0" * 16,
                       lambda *_: None)  # fmt: skip
        loaded = artifact.load(out)
        return {n.name: layer_of(n, loaded.tensors) for n in loaded.nodes}, {n.name: n.sqnr_db for n in loaded.nodes}


def compare(case: Case, rank: int, row: Callable[[str, str, int, float, float], None]) -> None:
    """Uniform rank; auto at its bytes, without and with a scan; auto at its quality."""
    ranks = {g.node: g.rank(rank) for g in case.groups}
    layers, layer_db = case.quantize(ranks)
    effects = tuple(scan(case.scan_probe, layers, layer_db, {}))
    found = Sensitivity(case.spec.name, case.format.name, rank, case.preset.name, "", effects, 0.0)
    at = {node: curve.option(ranks[node]) for node, curve in case.curves.items()}
    size = sum(option.bytes for option in at.values())
    gains = {e.node: e.gain for e in effects}
    error = torch.tensor([gains[n] * option.error for n, option in at.items()]).sum()
    uniform = float(-10 * error.log10())
    row(f"rank {rank} everywhere", f"{rank}", size, uniform, case.probe.output_db(layers))

    def auto(label: str, chosen: Allocation) -> None:
        spread = f"{min(chosen.ranks.values())} to {max(chosen.ranks.values())}, {len(chosen.kept)} in 16 bit"
        row(label, spread, chosen.bytes, chosen.error_db, case.probe.output_db(case.quantize(chosen.ranks)[0]))

    auto("auto, equal bytes, no scan", allocate(case.curves, size, None))
    auto("auto, equal bytes, scan", allocate(case.curves, size, None, found))
    auto("auto, equal predicted dB, scan", allocate(case.curves, None, uniform, found))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", nargs="+", default=["sdxl-tiny", "flux1-tiny"])
    p.add_argument("--format", nargs="+", default=["int4", "w4a8", "nvfp4"], choices=list(FORMATS))
    p.add_argument("--rank", type=int, default=32)
    p.add_argument("--preset", default="fast")
    p.add_argument("--pixels", type=int, default=256, help="side of all synthetic images (default 256)")
    args = p.parse_args()
    print("| model | format | ranks | R | nodes, MB | predicted, dB | measured, dB |\n|---|---|---|---|---|---|---|")
    for name in args.model:
        for fmt in args.format:
            with tempfile.TemporaryDirectory() as work:

                def row(label: str, spread: str, size: int, predicted: float, measured: float, of: str = fmt) -> None:
                    shown = "(nodes)" if "no scan" in label else f"{predicted:.1f}"
                    print(f"| {name} | {of} | {label} | {spread} | {size / 1e6:.2f} | {shown} | {measured:.1f} |",
                          flush=True)  # fmt: skip

                compare(Case(name, fmt, args.preset, args.pixels, Path(work)), args.rank, row)


if __name__ == "__main__":
    main()
