"""``svdq-trt report``: what quantization did to a model, as one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path

from svdq_trt.base.errors import EXIT_OK, UsageError
from svdq_trt.base.terminal import say

NAME = "report"
HELP = "write an engine folder's report.html: bytes, layers, spectra, where errors come from"
EPILOG = """\
Reads the original weights of every node, on the CPU, to take its error apart, and looks at some nodes closely. LoRAs
of the engine are left out of both.

examples:
  svdq-trt report engines/sdxl-tiny-sm_89               eight nodes looked at closely
  svdq-trt report engines/sdxl-sm_89 --layers 0         the figures of the build alone, at once: no weights are read
"""


def add_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("engine", type=Path, help="folder that a build wrote")
    p.add_argument(
        "--layers",
        type=int,
        default=8,
        metavar="COUNT",
        help="nodes to look at closely, the worst of each kind first (default 8); 0: none",
    )


def run(args: argparse.Namespace) -> int:
    if args.layers < 0:
        raise UsageError("--layers", str(args.layers), "0 or more")
    from svdq_trt.build.ui import Screen
    from svdq_trt.evaluate.report import write_report

    with Screen() as screen, screen.stage("report") as progress:
        path = write_report(args.engine, args.layers, progress)
    say(f"{path}: written, pictures in {path.parent / 'report'}")
    return EXIT_OK
