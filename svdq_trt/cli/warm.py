"""``svdq-trt warm``: compile an engine's kernels for this machine's GPU, before the first start."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from svdq_trt.base.errors import EXIT_OK
from svdq_trt.base.extras import required_by
from svdq_trt.base.terminal import say
from svdq_trt.cli.running import add_allowed

NAME = "warm"
HELP = "compile an engine's kernels ahead, on the GPU that will run it"
EPILOG = """\
TensorRT-RTX compiles an engine when it is opened on a GPU for the first time, for 5 to 20 seconds. This does it now,
for all engines of a pipeline at once, and keeps the result beside the plans; the next start finds it there. It holds
for this GPU model, driver and TensorRT-RTX release; elsewhere a start compiles anew.

example:
  svdq-trt warm engines/sdxl-sm_89
"""


def add_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("engine", type=Path, help="engine folder, also a pipeline's")
    r = p.add_argument_group("running")
    r.add_argument("--device", type=int, default=0, metavar="N", help="CUDA device (default 0)")
    add_allowed(r)


def run(args: argparse.Namespace) -> int:
    with required_by("svdq-trt warm"):
        from svdq_trt.runtime.choice import Opening
        from svdq_trt.runtime.warm import warm

    how = Opening(args.allow_host_code, args.allow_arch_mismatch, args.device)
    say(f"{args.engine}: compiling for CUDA device {args.device}", file=sys.stderr)
    for folder, seconds in warm(args.engine, how).items():
        say(f"{folder}: " + ("the kernels were there" if seconds is None else f"compiled in {seconds:.1f} s"))
    return EXIT_OK
