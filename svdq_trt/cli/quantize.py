"""``svdq-trt quantize``: checkpoint to svdq.safetensors, and no further."""

from __future__ import annotations

import argparse
import shlex
from pathlib import Path

from svdq_trt.base.errors import EXIT_OK
from svdq_trt.base.terminal import say
from svdq_trt.cli.build import add_output, add_quantization, quantization
from svdq_trt.contract.archs import resolve_format

NAME = "quantize"
HELP = "checkpoint -> svdq.safetensors only: quantize here, build elsewhere"
EPILOG = """\
Writes DIR/<model>-shared/<format>-r<rank>/svdq.safetensors (<format>-rauto/ with --rank auto): the whole quantized
model in one file, which needs no 16-bit weights beside it. svdq-trt build takes it with --quantized on any machine;
here, given the same options and --out, build continues from it. A stopped run resumes where it was, layer by layer.

examples:
  svdq-trt quantize --model flux1-dev --arch sm_89 --checkpoint ./FLUX.1-dev                      on the GPU, if any
  torchrun --nproc-per-node 8 --no-python svdq-trt quantize --model flux1-dev --arch sm_89 --preset best   on 8 GPUs
  svdq-trt build --model flux1-dev --arch sm_89 --quantized svdq.safetensors                              elsewhere
"""


def add_options(p: argparse.ArgumentParser) -> None:
    add_quantization(p)
    add_output(p)


def run(args: argparse.Namespace) -> int:
    common = quantization(args)
    from svdq_trt.artifact.allocation import describe
    from svdq_trt.build.config import BuildConfig
    from svdq_trt.build.run import quantize_formats

    config = BuildConfig(**common, check=False)
    for name, made in quantize_formats(config).items():
        result, path = made.quantized, made.artifact.path
        mean = "nothing quantized" if result.mean_sqnr_db is None else f"{result.mean_sqnr_db:.1f} dB on average"
        size = f"{result.quantized_weight_bytes / 1e9:.3f} GB, {result.fp16_weight_bytes / 1e9:.3f} GB in 16 bit"
        say(
            f"{path}: {args.model} {name} rank {config.rank_text}, {result.nodes} nodes, {mean}, {size}, "
            f"{made.costs.seconds['quantize']:.0f} s on {result.device}"
        )
        archs = [a for a in config.archs if resolve_format(config.format, a).name == name]
        if made.allocated is not None:
            say(f"  --rank auto: {describe(made.allocated.allocation)}")
        say(f"  {_next(args.model, archs, path)}")
    return EXIT_OK


def _next(model: str, archs: list[int], artifact: Path) -> str:
    """The command that builds engines from the artifact."""
    words = [word for arch in archs for word in ("--arch", f"sm_{arch}")]
    return shlex.join(["svdq-trt", "build", "--model", model, *words, "--quantized", str(artifact)])
