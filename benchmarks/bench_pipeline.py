#!/usr/bin/env python3
"""A prompt to a picture: engines beside diffusers' own pipeline under torch.compile, each from a cold process.

    python benchmarks/bench_pipeline.py make sdxl              # engines/sdxl-sm_90, of random weights
    python benchmarks/bench_pipeline.py time engines/sdxl-sm_90 --steps 30 --guidance 7 --rival compile

    python benchmarks/bench_pipeline.py folder sdxl /tmp/sdxl      # or step by step: no weights
    svdq-trt build --model sdxl --arch sm_90 --random-weights 0 --preset fast --no-check --pipeline /tmp/sdxl ...
    python benchmarks/bench_pipeline.py plans engines/sdxl-sm_90   # where TensorRT does not list the GPU

Needs a GPU and a TensorRT that runs on it. Weights are random in both, so the pictures are noise. Measured are the
seconds from the start of the process to the first picture, the median of further pictures, and the most GPU memory in
use. Each is started twice: what was compiled before is put away for the first start, and what that compiles is on the
disk for the second. A rival's weights are made up on the GPU, and none are read from a disk; its first picture is also
counted from when they are there.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import script

from svdq_trt.base.errors import EXIT_INCOMPLETE
from svdq_trt.cli.running import add_weight_budget, weight_budgets

#: of which `folder` knows the pipeline, with the options of its build: a picture of 1024 x 1024 with guidance
MODELS = {
    "sdxl": ("--batch", "2", "--weight-streaming", "text_encoder", "--weight-streaming", "text_encoder_2"),
    "flux1-dev": ("--batch", "1", "--quantize-text"),
    "flux2-klein-4b": ("--batch", "1"),
    "flux2-dev": ("--batch", "1"),
    "z-image-turbo": ("--batch", "1"),
    "sana-1.6b": ("--batch", "2"),
    "qwen-image": ("--batch", "1", "--tokens", "1:32:512"),
}
#: of the denoiser: its repeated blocks, as diffusers names them, or the whole with CUDA graphs
RIVALS = {"compile": None, "compile-graphs": "reduce-overhead"}


def main() -> int:
    args = _arguments()
    if args.command == "folder":
        from pipeline_bench.folder import write

        write(args.model, args.folder)
        return 0
    if args.command == "make":
        return _make(args.model, args.arch, args.out, args.build)
    if args.command == "plans":
        from pipeline_bench.plans import make

        make(args.engine)
        return 0
    if args.command == "job":
        return _run_job(args.job)
    from bench_options import need_gpu

    need_gpu()
    work = Path(tempfile.mkdtemp(prefix="svdq-bench-"))
    request = {name: getattr(args, name) for name in ("prompt", "steps", "guidance", "height", "width")}
    common = {"folder": str(args.engine), "request": request, "pictures": args.pictures}
    allow = {name: getattr(args, name) for name in ("allow_host_code", "allow_arch_mismatch", "cuda_graph")}
    allow["weight_budget"] = weight_budgets(args.weight_budget, args.engine)
    jobs = {"engines": ("engines", {"allow": allow})}
    jobs |= {rival: ("compiled", {"mode": RIVALS[rival]}) for rival in args.rival}
    for kept in args.engine.rglob("runtime-cache-*.bin"):
        kept.unlink()
    found: dict[str, dict[str, Any]] = {}
    print(_HEADER, flush=True)
    for name, (kind, more) in jobs.items():
        found[name] = _job(work, kind, common | more)
        if args.starts > 1 and found[name]:
            found[name]["again"] = _job(work, kind, common | more | {"pictures": 1})
        print(_row(name, found[name], found["engines"]), flush=True)
        if args.out:
            args.out.write_text(json.dumps({"request": request} | found, indent=1) + "\n")
    return 0 if all(found.values()) else 1


def _make(model: str, arch: str, out: Path, more: str) -> int:
    """Write the folder of a pipeline, build its engines with random weights, and make the plans that are missing."""
    from pipeline_bench.folder import write
    from pipeline_bench.plans import make

    from svdq_trt import cli

    pipeline = out / f"{model}-pipeline"
    write(model, pipeline)
    words = ["--model", model, "--arch", arch, "--random-weights", "0", "--preset", "fast", "--no-check"]
    words += ["--pipeline", str(pipeline), "--out", str(out), "--height", "1024", "--width", "1024"]
    words += [*MODELS[model], *shlex.split(more)]
    code = cli.main(["build", *words])
    if code != EXIT_INCOMPLETE:
        return code
    make(out / f"{model}-{arch}")
    return 0


def _job(work: Path, kind: str, job: dict[str, Any]) -> dict[str, Any]:
    """Run a contender in a process of its own; its result, empty where it failed."""
    path = work / f"{kind}.json"
    path.write_text(json.dumps(job | {"kind": kind, "out": str(work / kind), "started": time.time()}))
    compiled = {"TORCHINDUCTOR_CACHE_DIR": str(work / f"{job.get('mode')}-compiled")}
    done = subprocess.run([sys.executable, __file__, "job", path], env=os.environ | compiled)
    result = path.with_suffix(".result")
    found: dict[str, Any] = json.loads(result.read_text()) if done.returncode == 0 else {}
    return found


def _run_job(path: Path) -> int:
    job = json.loads(path.read_text())
    path.with_suffix(".result").write_text(json.dumps(import_module(f"pipeline_bench.{job['kind']}").run(job)))
    return 0


_HEADER = f"{'':16} {'first':>8} {'again':>8} {'picture':>8} s  GPU GB   parts"


def _row(name: str, one: dict[str, Any], ours: dict[str, Any]) -> str:
    """A contender's line; `ours`: the engines' figures. Either is empty where the contender failed."""
    if not one:
        return f"{name:16} FAILED, see above"
    parts = _engines_parts(one) if name == "engines" else _compared(one, ours)
    again = f"{one['again']['first_s']:8.2f}" if one.get("again") else f"{'-':>8}"
    memory = f"{one['memory_bytes'] / 1e9:6.2f}"
    return f"{name:16} {one['first_s']:8.2f} {again} {one['picture_s']:8.3f}    {memory}   {parts}"


def _engines_parts(ours: dict[str, Any]) -> str:
    """What the start and a picture are made of: the start by the parts of the engine that took the longest to open."""
    slowest = ", ".join(f"{part} {seconds:.1f} s" for part, seconds in ours["slowest_s"].items())
    parts = ", ".join(f"{part} {seconds:.3f} s" for part, seconds in ours["parts_s"].items())
    return f"open {ours['open_s']:.1f} s (slowest {ours['slowest']}: {slowest}), {parts}"


def _compared(rival: dict[str, Any], ours: dict[str, Any]) -> str:
    """A rival beside the engines; its first picture also counted from when its weights were there."""
    since = rival["first_s"] - rival["weights_s"]
    said = f"first {since:.2f} s after its weights"
    if not ours:
        return said
    faster, share = rival["picture_s"] / ours["picture_s"], ours["memory_bytes"] / rival["memory_bytes"]
    starts = f"{_sooner(rival, ours)} at the first start"
    if rival.get("again") and ours.get("again"):
        starts += f", {_sooner(rival['again'], ours['again'])} at the second"
    return f"{said}; engines: {faster:.2f}x as fast, {share:.0%} of the memory, first picture {starts}"


def _sooner(rival: dict[str, Any], ours: dict[str, Any]) -> str:
    """How much sooner the engines' first picture is: ``2.91x as soon (1.80x without the rival's weights)``."""
    since = rival["first_s"] - rival["weights_s"]
    return f"{rival['first_s'] / ours['first_s']:.2f}x as soon ({since / ours['first_s']:.2f}x without its weights)"


def _arguments() -> argparse.Namespace:
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = p.add_subparsers(dest="command", required=True)
    folder = commands.add_parser("folder", help="write the folder of a published pipeline, without weights")
    folder.add_argument("model", choices=MODELS)
    folder.add_argument("folder", type=Path)
    made = commands.add_parser("make", help="folder, build and plans in one, with the options that are timed")
    made.add_argument("model", choices=MODELS)
    made.add_argument("--arch", default="sm_90")
    made.add_argument("--out", type=Path, default=Path("engines"), metavar="DIR", help="default ./engines")
    made.add_argument("--build", default="", metavar="OPTIONS", help="more of the build's, as --build=--step-cache")
    plans = commands.add_parser("plans", help="make plans for the GPU present that a build left out, by TensorRT-RTX")
    plans.add_argument("engine", type=Path, help="folder of engines with pipeline.json")
    t = commands.add_parser("time", help="time the engines of a pipeline, and rivals")
    t.add_argument("engine", type=Path, help="folder of engines with pipeline.json")
    t.add_argument("--prompt", default="a photo of a fox")
    t.add_argument("--steps", type=int, default=30)
    t.add_argument("--guidance", type=float, default=7.0)
    t.add_argument("--height", type=int, default=1024)
    t.add_argument("--width", type=int, default=1024)
    t.add_argument("--pictures", type=int, default=3, metavar="N", help="after the first (default 3)")
    t.add_argument("--starts", type=int, default=2, choices=(1, 2), help="of each (default 2)")
    t.add_argument("--rival", action="append", default=[], choices=tuple(RIVALS), help="diffusers' pipeline, compiled")
    add_weight_budget(t)
    t.add_argument("--no-graph", dest="cuda_graph", action="store_false", help="launch the engines' kernels one by one")
    t.add_argument("--allow-host-code", action="store_true")
    t.add_argument("--allow-arch-mismatch", action="store_true")
    t.add_argument("--out", type=Path, metavar="JSON")
    commands.add_parser("job").add_argument("job", type=Path)
    return p.parse_args()


if __name__ == "__main__":
    script.run(main)
