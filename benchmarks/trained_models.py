#!/usr/bin/env python3
"""Train two small diffusion models, quantize each in every way, and compare the pictures with the 16-bit model's.

    python benchmarks/trained_models.py --out trained
    python benchmarks/trained_models.py --out trained --device cpu --seconds 1800 --model sdxl-tiny

Weights from a hub are not needed: the models are `sdxl-tiny` (UNet, predicts noise) and `flux1-tiny` (diffusion
transformer, predicts velocity), trained from a seed on drawn scenes. Calibration inputs come from the 16-bit model's
own sampling. On a GPU the quantized linears run in the project's kernels, else in the torch op.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from pathlib import Path

from trained.tasks import TASKS

#: learning rate, batch
SETTINGS = {"sdxl-tiny": (6e-4, 256), "flux1-tiny": (1e-3, 256)}


def main() -> int:
    args = _arguments()
    for name in args.model:
        (args.out / name).mkdir(parents=True, exist_ok=True)
    if len(args.model) > 1 and args.stage in ("all", "train", "judge"):  # one process each: both are bound by launches
        own = [a for a in sys.argv[1:] if a not in args.model and a != "--model"]
        one = [sys.executable, __file__, *own, "--no-report", "--model"]
        jobs = [subprocess.Popen([*one, name]) for name in args.model]
        failed = sum(job.wait() != 0 for job in jobs)
        _report(args)  # of those that came through
        return 1 if failed else 0
    for name in args.model:
        task, work = TASKS[name], args.out / name
        checkpoint = work / "model.safetensors"
        if args.stage in ("all", "train"):
            from trained.train import train

            rate, batch = SETTINGS[name]
            train(task, checkpoint, seconds=args.seconds, steps=args.steps, batch=batch, lr=rate, seed=0,
                  device=args.device)  # fmt: skip
        if args.stage in ("all", "judge"):
            from trained.judge import judge

            judge(task, checkpoint, work, args.device)
    return _report(args) if args.report and args.stage != "train" else 0


def _report(args: argparse.Namespace) -> int:
    from trained.sheet import contact_sheet, table

    for name in args.model:
        work = args.out / name
        if not (work / "results.json").exists():
            print(f"\n{name}: no results, see above")
            continue
        results = json.loads((work / "results.json").read_text())
        contact_sheet(results, work, work / f"{name}.png")
        print(f"\n{name}, {results['pictures']} pictures against the 16-bit model's\n\n{table(results)}")
    return 0


def _arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True, metavar="DIR")
    p.add_argument("--model", nargs="+", default=list(TASKS), choices=list(TASKS))
    p.add_argument("--stage", default="all", choices=("all", "train", "judge", "report"))
    p.add_argument("--seconds", type=float, default=75, help="of training, at most (default 75)")
    p.add_argument("--steps", type=int, default=6000, help="of training, at most (default 6000)")
    p.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    p.add_argument("--no-report", dest="report", action="store_false", help=argparse.SUPPRESS)
    return p.parse_args()


if __name__ == "__main__":
    sys.exit(main())
