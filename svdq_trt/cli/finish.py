"""``svdq-trt finish``: build the missing plan of an engine folder, on its target."""

from __future__ import annotations

import argparse
from pathlib import Path

from svdq_trt.base.errors import EXIT_OK
from svdq_trt.base.terminal import say
from svdq_trt.cli.warm import add_no_warm, warm_if_here

NAME = "finish"
HELP = "build the plan of an engine folder that lacks one, on its target"
EPILOG = ""


def add_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("engine", type=Path, help="folder with model.onnx and manifest.json")
    p.add_argument("--backend", default="auto", help="auto, tensorrt-rtx or tensorrt")
    add_no_warm(p)


def run(args: argparse.Namespace) -> int:
    from svdq_trt.build.finish import finish

    say(f"{finish(args.engine, args.backend)}: done")
    if args.warm:
        warm_if_here(args.engine)
    return EXIT_OK
