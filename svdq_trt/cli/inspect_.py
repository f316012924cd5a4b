"""``svdq-trt inspect``: what a checkpoint is, quantized or not, and what can be done with it."""

from __future__ import annotations

import argparse
from pathlib import Path

from svdq_trt.base.errors import EXIT_OK
from svdq_trt.base.terminal import say

NAME = "inspect"
HELP = "say whose a checkpoint is, of which model, in which formats, and what can be done with it"
EPILOG = """\
examples:
  svdq-trt inspect svdq-int4_r32-flux.1-dev.safetensors
Only headers are read.
"""
_SHOWN = 5  # layers in 16 bit that are named


def add_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("checkpoint", type=Path, help="a .safetensors file, or a folder of it (nunchaku's, diffusers')")


def run(args: argparse.Namespace) -> int:
    from svdq_trt.interop.survey import survey

    found = survey(args.checkpoint)
    quantized = " and ".join(f"{count} {name}" for name, count in sorted(found.layers.items()))
    say(f"made by    {found.maker or ('an unknown tool' if found.layers else 'nobody: not quantized')}")
    say(f"model      {', '.join(found.models) or 'none that this tool has'}")
    say(f"layers     {quantized or 'none'} quantized, {len(found.dense)} in 16 or 32 bit")
    if found.ranks:
        say(f"rank       {', '.join(map(str, found.ranks))}")
    say(f"bytes      {', '.join(f'{name} {size / 1e9:.3f} GB' for name, size in sorted(found.bytes.items()))}")
    if found.layers and found.dense:
        more = f" and {len(found.dense) - _SHOWN} more" if len(found.dense) > _SHOWN else ""
        say(f"16 bit     {', '.join(found.dense[:_SHOWN])}{more}")
    if found.refusal:
        say(f"not read   {found.refusal}")
    for use in found.uses:
        say(f"use        {use}")
    return EXIT_OK
