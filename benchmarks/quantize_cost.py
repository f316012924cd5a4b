#!/usr/bin/env python3
"""The cost of quantizing a model: seconds, layers per second and memory of the build's own stages.

    python benchmarks/quantize_cost.py --model flux1-dev --preset default --random-weights 0
    python benchmarks/quantize_cost.py --model sdxl --preset best --checkpoint ./sdxl-base --device cuda --out sdxl.json

Runs the steps of svdq_trt/build/stages/quantize.py in this process; no TensorRT is needed. With --limit-seconds
it stops early and adds an extrapolation: the time of the layers done, times all layers' parameters over theirs.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import script

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))


class Limit(Exception):  # noqa: N818 (not an error)
    """The time of --limit-seconds is over."""


@dataclass
class Step:
    """One step of the stage: `done` of `total` as in its progress, layers as counted by the calls."""

    name: str
    start: float
    seconds: float = 0.0
    done: float = 0.0
    total: float = 0.0
    calls: int = 0
    complete: bool = False
    writing: float | None = None  # when it began to write the artifact


@dataclass
class Watch:
    """A watch that times steps and stops the run when its time is up."""

    limit: float | None
    begin: float = field(default_factory=time.perf_counter)
    steps: list[Step] = field(default_factory=list)
    _said: float = 0.0

    def step(self, name: str, work: Any) -> Any:
        """Run work(progress) as a step."""
        one = Step(name, time.perf_counter())
        self.steps.append(one)
        try:
            result = work(lambda done, total, text="": self._progress(one, done, total, text))
            one.complete = True
            return result
        finally:
            one.seconds = time.perf_counter() - one.start

    def _progress(self, one: Step, done: float, total: float, text: str) -> None:
        now = time.perf_counter()
        one.calls += done > one.done
        one.done, one.total = done, total
        if one.writing is None and text.startswith("writing"):
            one.writing = now
        if now - self._said > 10:
            self._said = now
            print(f"{now - self.begin:7.1f} s  {one.name:<10} {100 * done / max(total, 1):5.1f} %  {text}", flush=True)
        if self.limit is not None and now - self.begin > self.limit:
            raise Limit


def main() -> int:
    args = _arguments()
    result = measure(args)
    show(result)
    if args.out is not None:
        args.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """Run the stage's steps under a watch."""
    import torch

    from svdq_trt.base.device import resolve_device, torch_device
    from svdq_trt.base.ranks import Alone
    from svdq_trt.build.stages.calibrate import Calibrate
    from svdq_trt.build.stages.quantize import Quantize
    from svdq_trt.build.stages.weights import Weights

    kind = resolve_device(args.device)
    device = torch_device(kind, 0)
    work = Path(tempfile.mkdtemp(prefix="quantize_cost-", dir=args.work))
    weights = Weights(args.model, "", checkpoint=args.checkpoint, random_weights=args.random_weights)
    calibrate = Calibrate(weights, None, (), kind, force=True, out=work / "calib.safetensors")
    stage = Quantize(calibrate, args.format, args.rank, None, args.preset, out=work / "svdq.safetensors")
    watch, nodes = Watch(args.limit_seconds), []
    layers, parameters = 0, 0
    try:
        model = watch.step("open", calibrate.open)
        layers, parameters = len(model.recipe.groups), model.fp16_bytes // 2
        calibration = watch.step("calibrate", lambda progress: calibrate.calibration(model, device, progress))
        nodes = watch.step(
            "quantize",
            lambda progress: stage.quantize(model, stage.target(model), calibration, device, progress, Alone()),
        )
    except Limit:
        pass
    finally:
        shutil.rmtree(work)
    gpu = kind == "cuda"
    return {
        "model": args.model,
        "parameters": parameters,
        "format": args.format,
        "rank": args.rank,
        "preset": args.preset,
        "device": torch.cuda.get_device_name(device) if gpu else "cpu",
        "torch": torch.__version__,
        "cpus": len(os.sched_getaffinity(0)),
        "machine": platform.processor() or platform.machine(),
        "layers": layers,
        "steps": [_to_json(step) for step in watch.steps],
        "seconds": round(time.perf_counter() - watch.begin, 2),
        "complete": bool(nodes),
        "mean_sqnr_db": round(sum(n.sqnr_db for n in nodes) / len(nodes), 2) if nodes else None,
        "peak_rss_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
        "peak_gpu_allocated_bytes": torch.cuda.max_memory_allocated(device) if gpu else 0,
        "peak_gpu_bytes": torch.cuda.max_memory_reserved(device) if gpu else 0,
        "extrapolated_seconds": _extrapolated(watch.steps, bool(nodes)),
    }


def _to_json(step: Step) -> dict[str, Any]:
    share = 1.0 if step.complete else step.done / step.total if step.total else 0.0
    writing = 0.0 if step.writing is None else step.start + step.seconds - step.writing
    return {
        "name": step.name,
        "seconds": round(step.seconds, 2),
        "share": round(share, 4),
        "layers": step.calls,
        "writing_seconds": round(writing, 2),
    }


def _extrapolated(steps: list[Step], complete: bool) -> float | None:
    """Extrapolated seconds of the whole, from a stopped quantize step; None where it finished or did not begin."""
    last = steps[-1]
    if complete or last.name != "quantize" or not last.done:
        return None
    return round(sum(s.seconds for s in steps[:-1]) + last.seconds * last.total / last.done, 1)


def show(result: dict[str, Any]) -> None:
    print(
        f"\n{result['model']} {result['format']} rank {result['rank']}, preset {result['preset']}, on "
        f"{result['device']}, {result['cpus']} CPU cores"
    )
    for step in result["steps"]:
        rate = ""
        if step["name"] == "quantize":
            rate = f"{step['layers'] / (step['seconds'] - step['writing_seconds']):.2f} layers/s"
            rate += f", then {step['writing_seconds']} s to write the artifact" if step["writing_seconds"] else ""
        print(f"  {step['name']:<10} {step['seconds']:8.1f} s  {100 * step['share']:5.1f} %  {rate}")
    print(
        f"  {'all':<10} {result['seconds']:8.1f} s   peak memory {result['peak_rss_bytes'] / 1e9:.2f} GB, "
        f"GPU {result['peak_gpu_bytes'] / 1e9:.2f} GB"
    )
    if result["mean_sqnr_db"] is not None:
        print(f"  {result['layers']} layers, {result['mean_sqnr_db']} dB on average")
    elif result["extrapolated_seconds"] is not None:
        print(
            f"  EXTRAPOLATED, not measured: {result['extrapolated_seconds']:.0f} s for the whole, were the layers "
            "left as costly per parameter as those done, and without writing the artifact"
        )
    else:
        print("  stopped before the first layer: no figure for the whole")


def _arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--model", default="flux1-dev", help="a name from `svdq-trt models`")
    p.add_argument("--preset", default="default", help="fast, default or best")
    p.add_argument("--format", default="int4", choices=("int4", "w4a8", "nvfp4"))
    p.add_argument("--rank", type=int, default=32)
    p.add_argument("--checkpoint", metavar="PATH")
    p.add_argument("--random-weights", type=int, metavar="SEED")
    p.add_argument("--device", default="auto", help="auto, cpu or cuda")
    p.add_argument("--limit-seconds", type=float, metavar="S", help="stop after S seconds and extrapolate")
    p.add_argument("--work", type=Path, metavar="DIR", help="for the artifact, which is deleted again")
    p.add_argument("--out", type=Path, metavar="JSON")
    return p.parse_args()


if __name__ == "__main__":
    script.run(main)
