"""``svdq-trt to-nunchaku``: our artifact -> a nunchaku file."""

from __future__ import annotations

import argparse
from pathlib import Path

from svdq_trt.base.errors import EXIT_OK
from svdq_trt.base.terminal import say

NAME = "to-nunchaku"
HELP = "svdq.safetensors -> a checkpoint that nunchaku reads"
EPILOG = """\
examples:
  svdq-trt to-nunchaku engines/flux1-dev-sm_89 --out svdq-int4_r32-flux.1-dev.safetensors
Formats int4 and nvfp4. What is exact and what is not: docs/interop.md.
"""


def add_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("artifact", type=Path, help="svdq.safetensors, or an engine folder that holds one")
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="the .safetensors file to write")


def run(args: argparse.Namespace) -> int:
    from svdq_trt.interop import export_nunchaku

    report = export_nunchaku(args.artifact, args.out)
    say(f"{args.out}: {report.format} rank {report.rank} for nunchaku, {report.nodes} nodes")
    for note in report.notes:
        say(f"    {note}")
    return EXIT_OK
