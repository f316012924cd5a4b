"""``svdq-trt import``: another tool's quantized checkpoint -> our artifact."""

from __future__ import annotations

import argparse
from pathlib import Path

from svdq_trt.base.errors import EXIT_OK
from svdq_trt.base.terminal import say

NAME = "import"
HELP = "a quantized checkpoint of another tool -> svdq.safetensors"
EPILOG = """\
examples:
  svdq-trt import svdq-int4_r32-flux.1-dev.safetensors --model flux1-dev --out flux.svdq.safetensors
  svdq-trt build --model flux1-dev --arch sm_89 --quantized flux.svdq.safetensors
Read are files of nunchaku, Nunchaku Lite (diffusers), cache-dit, comfy-kitchen, vLLM-Omni and ModelOpt.
build --quantized also takes the checkpoint itself. Nothing is quantized again: codes and scales move as they are.
"""


def add_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("quantized", type=Path, help="a .safetensors file, or a folder of it (nunchaku's, diffusers')")
    p.add_argument("--model", required=True, help="a name from `svdq-trt models`")
    p.add_argument(
        "--checkpoint", metavar="PATH", help="16-bit weights, for cache-dit's files: they have quantized layers alone"
    )
    p.add_argument("--out", type=Path, required=True, metavar="FILE", help="the artifact to write")


def run(args: argparse.Namespace) -> int:
    from svdq_trt.checkpoint.load import open_weights
    from svdq_trt.interop import import_checkpoint
    from svdq_trt.models import get_model

    spec = get_model(args.model)
    rest = None if args.checkpoint is None else open_weights(spec, args.checkpoint)
    report = import_checkpoint(args.quantized, spec, args.out, rest)
    say(f"{args.out}: {spec.name} from {report.kind}, {report.format} rank {report.rank}, {report.nodes} nodes")
    for reason in sorted(set(report.kept.values())):
        say(f"    {sum(r == reason for r in report.kept.values()):4d}  {reason}")
    for note in report.notes:
        say(f"    {note}")
    return EXIT_OK
