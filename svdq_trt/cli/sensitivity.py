"""``svdq-trt sensitivity``: the effect of quantizing each node alone on the model's output."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from svdq_trt.base.errors import EXIT_OK, UsageError
from svdq_trt.base.terminal import say
from svdq_trt.cli.build import RANK, add_skip
from svdq_trt.contract.formats import FORMATS
from svdq_trt.quantize.preset import DEFAULT_PRESET

if TYPE_CHECKING:
    from svdq_trt.artifact.sensitivity import Sensitivity

NAME = "sensitivity"
HELP = "quantize each node alone and measure the model's output: where errors hurt"
EPILOG = """\
Writes FILE (JSON) and a bar chart beside it (FILE with .png). A killed scan resumes where it stopped.

examples:
  svdq-trt sensitivity --model sdxl-tiny --random-weights 0 --format int4 --pixels 128
  svdq-trt sensitivity --model sdxl --checkpoint ./sdxl-base --format int4 --out sdxl-int4.json
  svdq-trt build --model sdxl --arch sm_89 --checkpoint ./sdxl-base --rank auto --budget-bytes 1.4GB --sensitivity sdxl-int4.json
"""  # noqa: E501


def add_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("--model", required=True, help="a name from `svdq-trt models`")
    p.add_argument("--checkpoint", metavar="PATH", help="diffusers folder, one .safetensors, or a hub id")
    p.add_argument("--random-weights", type=int, metavar="SEED", help="made-up weights with realistic outliers")
    p.add_argument("--format", required=True, help=", ".join(FORMATS))
    p.add_argument("--rank", type=int, default=int(RANK), metavar="R", help=f"of the 16-bit branch (default {RANK})")
    p.add_argument("--preset", default=DEFAULT_PRESET, help=f"as in a build (default {DEFAULT_PRESET})")
    p.add_argument(
        "--calibration", type=Path, metavar="FILE", help="safetensors with model inputs, stacked; default: synthetic"
    )
    add_skip(p)
    p.add_argument("--samples", type=int, default=2, metavar="COUNT", help="inputs to run on (default 2)")
    p.add_argument("--pixels", type=int, metavar="N", help="side of the synthetic images; default: as calibration")
    p.add_argument(
        "--device",
        default="auto",
        help="of quantizer and model: auto (the GPU where there is one), cpu or "
        "cuda, with room for the model in float32",
    )
    p.add_argument("--top", type=int, default=10, metavar="COUNT", help="nodes to print, the worst first (default 10)")
    p.add_argument("--out", type=Path, metavar="FILE", help="default: MODEL-FORMAT-sensitivity.json")


def run(args: argparse.Namespace) -> int:
    if args.top < 0:
        raise UsageError("--top", str(args.top), "0 or more")
    out: Path = args.out or Path(f"{args.model}-{args.format}-sensitivity.json")
    if out.suffix == ".png":
        raise UsageError("--out", f"'{out}'", "a name for the JSON file", "The picture is written beside it.")
    from svdq_trt.base.files import atomic_write
    from svdq_trt.build.scan import ScanConfig, run_scan
    from svdq_trt.build.ui import Screen
    from svdq_trt.evaluate.figures import sensitivity

    config = ScanConfig(
        args.model,
        args.checkpoint,
        args.random_weights,
        args.format,
        args.rank,
        args.preset,
        args.calibration,
        tuple(args.skip),
        args.samples,
        args.pixels,
        args.device,
    )
    with Screen() as screen:
        found = run_scan(config, out, screen)
    picture = out.with_suffix(".png")
    with atomic_write(picture) as tmp:
        tmp.write_bytes(sensitivity(found))
    _print(found, args.top)
    say(f"{out}: written, with a picture in {picture}")
    return EXIT_OK


def _print(found: Sensitivity, top: int) -> None:
    from svdq_trt.build.scan import worst

    rows = worst(found.effects, top)
    if rows:
        say(f"{'output dB':>9}  {'node dB':>7}  {'share':>6}  node, the worst first")
    total = sum(10 ** (-e.output_db / 10) for e in found.effects) or 1.0
    for effect in rows:
        share = 100 * 10 ** (-effect.output_db / 10) / total
        say(f"{effect.output_db:9.1f}  {effect.layer_db:7.1f}  {share:4.1f} %  {effect.node} ({effect.op})")
    say(f"all nodes: {found.predicted_db:.1f} dB predicted by their sum, {found.measured_db:.1f} dB measured")
