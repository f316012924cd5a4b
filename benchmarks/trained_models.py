#!/usr/bin/env python3
"""Train two small diffusion models, quantize each in every way, and compare the pictures with the 16-bit model's.

    python benchmarks/trained_models.py --out trained
    python benchmarks/trained_models.py --out trained --device cpu --steps 200 --model sdxl-tiny
    python benchmarks/trained_models.py --out trained --publish    # existing results, into docs/

Weights from a hub are not needed: the models are `sdxl-tiny` (UNet) and `flux1-tiny` (diffusion transformer), trained
from a seed on drawn scenes. Calibration inputs come from the 16-bit model's own sampling. On a GPU the quantized
linears run in the project's kernels where those are built, else in torch.

Output: <model>.json, <model>.png, <model>.safetensors (the sheet's pictures); weights and calibration stay in --work.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import time
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import script
import torch
from trained import jobs
from trained.judge import judge
from trained.tasks import TASKS
from trained.train import MODES, train
from trained.variants import start_worker, variants


class Settings(NamedTuple):
    """Settings of a model's training."""

    lr: float
    batch: int
    seconds: float
    mode: str  # the first mode that is tried


#: The small FLUX starts in TF32: its backward pass in bf16 ended in CUBLAS_STATUS_EXECUTION_FAILED on an H200.
SETTINGS = {
    "sdxl-tiny": Settings(8e-4, 128, 50, "bf16-graph"),
    "flux1-tiny": Settings(1e-3, 128, 75, "tf32-graph"),
}


def main() -> int:
    args = arguments()
    args.work = args.work or args.out / "work"
    if args.publish:
        from trained.publish import publish

        return publish(args.out, args.model)
    if args.own_process:
        _one(args, args.model[0])
        return 0
    end = time.monotonic() + args.limit
    with ThreadPoolExecutor(len(args.model)) as threads:  # side by side: one's GPU work fills the other's pauses
        codes = list(threads.map(partial(tried, args, end), args.model))
    failed = [name for name, code in zip(args.model, codes, strict=True) if code]
    for name in args.model if args.stage != "train" else ():
        _report(args.out, args.work / name, name)
    if failed:
        why = f"stopped at the limit of {args.limit:.0f} s" if time.monotonic() > end else "their errors are above"
        print(f"not finished: {', '.join(failed)}; {why}")
    return 1 if failed else 0


def tried(args: argparse.Namespace, end: float, name: str) -> int:
    """The exit code for one model."""
    first, trained = args.mode or SETTINGS[name].mode, args.work / name / "model.safetensors"
    return jobs.tried(name, lambda mode: start(args, name, mode), first, trained, end)


def start(args: argparse.Namespace, name: str, mode: str) -> subprocess.Popen[bytes]:
    """Start a process for one model."""
    options = {key: getattr(args, key) for key in ("out", "work", "stage", "steps", "device", "workers", "linears")}
    seconds = SETTINGS[name].seconds if args.seconds is None else args.seconds
    return jobs.start(__file__, {**options, "seconds": seconds, "model": name}, mode)


def _one(args: argparse.Namespace, name: str) -> None:
    """Train and judge one model."""
    task, work = TASKS[name], args.work / name
    work.mkdir(parents=True, exist_ok=True)
    (work / "results.json").unlink(missing_ok=True)
    if args.device == "cpu":
        torch.set_num_threads(os.cpu_count() or 1)
    with ProcessPoolExecutor(args.workers, get_context("spawn"), start_worker) as pool:
        if args.stage != "judge":
            lr, batch = SETTINGS[name].lr, SETTINGS[name].batch
            (work / "model.safetensors").unlink(missing_ok=True)
            running = partial(_start_workers, pool, args.workers if args.stage == "all" else 0)
            record = train(
                task,
                work / "model.safetensors",
                seconds=args.seconds,
                steps=args.steps,
                batch=batch,
                lr=lr,
                device=args.device,
                mode=args.mode,
                running=running,
            )
            (work / "training.json").write_text(json.dumps({**record, "batch": batch, "lr": lr}) + "\n")
        if args.stage != "train":
            judge(task, work, args.device, pool, variants(), kernels=args.linears == "kernels")


def _start_workers(pool: Executor, count: int) -> None:
    """Start workers, so that they load while the model trains; each task without an idle worker starts one."""
    for _ in range(count):
        pool.submit(int)


def _report(out: Path, work: Path, name: str) -> None:
    """Write sheet, table and copies of the results of one model, as far as they exist."""
    from safetensors.torch import load_file
    from trained.sheet import contact_sheet, table

    if not (work / "results.json").exists():
        print(f"\n{name}: no results")
        return
    results = json.loads((work / "results.json").read_text())
    contact_sheet(results, load_file(work / "pictures.safetensors"), out / f"{name}.png")
    shutil.copy(work / "results.json", out / f"{name}.json")
    shutil.copy(work / "pictures.safetensors", out / f"{name}.safetensors")
    print(f"\n{name}, {results['pictures']} pictures against the 16-bit model's\n\n{table(results)}", flush=True)


def arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--out", type=Path, required=True, metavar="DIR")
    p.add_argument("--work", type=Path, metavar="DIR", help="default: OUT/work")
    p.add_argument("--model", nargs="+", default=list(TASKS), choices=list(TASKS))
    p.add_argument("--stage", default="all", choices=("all", "train", "judge"))
    p.add_argument("--seconds", type=float, help="of training, at most (default: 50 for sdxl-tiny, 75 for flux1-tiny)")
    p.add_argument("--steps", type=int, default=8000, help="of training, at most (default 8000)")
    p.add_argument("--limit", type=float, default=86400, metavar="S", help="write what there is after S seconds")
    p.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    p.add_argument(
        "--workers",
        type=int,
        default=max((os.cpu_count() or 2) * 5 // 8, 1),
        metavar="N",
        help="processes that quantize, per model (default: 5/8 of the cores)",
    )
    p.add_argument(
        "--linears",
        default="kernels",
        choices=("kernels", "torch"),
        help="what runs the quantized linears; int4 and nvfp4 kernels are slow on sm_90",
    )
    p.add_argument("--publish", action="store_true", help="write docs/ from the results in OUT, and do nothing else")
    p.add_argument(
        "--mode",
        choices=MODES,
        help="of training; after an error the next one is tried (default: "
        "bf16-graph for sdxl-tiny, tf32-graph for flux1-tiny)",
    )
    p.add_argument("--own-process", action="store_true", help=argparse.SUPPRESS)
    return p.parse_args()


if __name__ == "__main__":
    script.run(main)
