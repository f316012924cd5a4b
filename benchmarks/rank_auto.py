#!/usr/bin/env python3
"""A rank for every node against one rank for all: at equal bytes, and by the bytes for equal quality.

    python benchmarks/rank_auto.py [--model sdxl-tiny flux1-tiny] [--format int4 ...] [--rank 32] [--pixels 128]

Random weights with outliers. Predicted: the sum of the nodes' errors, weighed by a scan. Measured: the model in
torch, float32 around its nodes, on inputs that neither calibration nor the scan saw.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import script
from torch import nn

from svdq_trt import calibrate
from svdq_trt.artifact import svdq_file
from svdq_trt.artifact.allocation import Allocation
from svdq_trt.artifact.sensitivity import Sensitivity
from svdq_trt.base.journal import Journal
from svdq_trt.calibrate.inputs import synthetic
from svdq_trt.checkpoint import load
from svdq_trt.contract.formats import FORMATS
from svdq_trt.contract.sqnr import decibels
from svdq_trt.models import get_model
from svdq_trt.nn.linear import SVDQLinear
from svdq_trt.nn.restore import layer_of
from svdq_trt.quantize.allocate import allocate, measure_curves
from svdq_trt.quantize.preset import get_preset
from svdq_trt.quantize.run import quantize_model
from svdq_trt.quantize.sensitivity import Probe, scan
from svdq_trt.quantize.spend import total_bytes, total_error

SCAN_SEED, FRESH_SEED = 1, 2  # calibration's is 0


class Case:
    """One model in one format: calibrated, with measured curves."""

    def __init__(self, name: str, fmt: str, preset: str, pixels: int | None, work: Path) -> None:
        self.spec, self.format, self.preset, self.work = get_model(name), FORMATS[fmt], get_preset(preset), work
        self.module = load(self.spec, random_seed=0)
        self.groups = self.spec.groups(self.module)
        self.calibration = calibrate.collect(self.module, self.spec, self.groups, height=pixels, width=pixels)
        self.curves = measure_curves(
            self.module,
            self.groups,
            self.calibration,
            self.format,
            self.spec.torch_dtype,
            Journal(work / "curves", ""),
            lambda *_: None,
        )
        px = pixels or self.spec.calibration_pixels
        probes = [
            Probe(self.module, self.spec, self.groups, list(synthetic(self.spec, 2, px, px, seed)))
            for seed in (SCAN_SEED, FRESH_SEED)
        ]
        self.scan_probe, self.probe = probes

    def quantize(self, ranks: dict[str, int]) -> tuple[dict[str, SVDQLinear], dict[str, float]]:
        """Quantize; returns layers and their own SQNR. Nodes that are not in `ranks` stay in 16 bit."""
        shared = {id(t): t for t in (*self.module.parameters(), *self.module.buffers())}
        module: nn.Module = copy.deepcopy(self.module, shared)
        out = self.work / "svdq.safetensors"
        groups = [g for g in self.groups if g.node in ranks]
        quantize_model(
            module, self.spec, groups, self.calibration, self.format, ranks, self.preset, out, "0" * 16, lambda *_: None
        )
        loaded = svdq_file.load(out)
        return {n.name: layer_of(n, loaded.tensors) for n in loaded.nodes}, {n.name: n.sqnr_db for n in loaded.nodes}


class Row(NamedTuple):
    """One line of the table; predicted_db is None where the prediction is not for the output."""

    label: str
    spread: str
    bytes: int
    predicted_db: float | None
    measured_db: float


def compare(case: Case, rank: int) -> Iterator[Row]:
    """Compare a uniform rank, auto at its bytes, without and with a scan, and auto at its predicted quality."""
    ranks = {g.node: g.rank(rank) for g in case.groups}
    layers, layer_db = case.quantize(ranks)
    effects = tuple(scan(case.scan_probe, layers, layer_db, {}))
    found = Sensitivity(case.spec.name, case.format.name, rank, case.preset.name, "", effects, 0.0)
    at = {effect.node: case.curves[effect.node].option(ranks[effect.node], effect.gain) for effect in effects}
    size, uniform = total_bytes(at), decibels(total_error(at))
    yield Row(f"rank {rank} everywhere", f"{rank}", size, uniform, case.probe.output_db(layers))

    def auto(label: str, chosen: Allocation) -> Row:
        spread = f"{min(chosen.ranks.values())} to {max(chosen.ranks.values())}; {len(chosen.kept)} nodes in 16 bit"
        predicted = chosen.error_db if chosen.gains else None
        return Row(label, spread, chosen.bytes, predicted, case.probe.output_db(case.quantize(chosen.ranks)[0]))

    yield auto("auto, equal bytes, no scan", allocate(case.curves, size, None))
    yield auto("auto, equal bytes", allocate(case.curves, size, None, found, "scan"))
    yield auto("auto, equal prediction", allocate(case.curves, None, uniform, found, "scan"))


def main() -> None:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", nargs="+", default=["sdxl-tiny", "flux1-tiny"])
    p.add_argument("--format", nargs="+", default=["int4", "w4a8", "nvfp4"], choices=list(FORMATS))
    p.add_argument("--rank", type=int, default=32)
    p.add_argument("--preset", default="fast")
    p.add_argument("--pixels", type=int, default=128, help="side of all synthetic images (default 128)")
    args = p.parse_args()
    print("| model | format | ranks | R | nodes, MB | predicted, dB | measured, dB |\n|---|---|---|---|---|---|---|")
    for name in args.model:
        for fmt in args.format:
            with tempfile.TemporaryDirectory() as work:
                for row in compare(Case(name, fmt, args.preset, args.pixels, Path(work)), args.rank):
                    predicted = "-" if row.predicted_db is None else f"{row.predicted_db:.1f}"
                    print(
                        f"| {name} | {fmt} | {row.label} | {row.spread} | {row.bytes / 1e6:.2f} | {predicted} | "
                        f"{row.measured_db:.1f} |",
                        flush=True,
                    )


if __name__ == "__main__":
    script.run(main)
