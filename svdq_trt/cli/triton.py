"""``svdq-trt triton``: an engine folder in a model repository of Triton Inference Server."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from svdq_trt.base.errors import EXIT_OK, UsageError
from svdq_trt.base.terminal import say

NAME = "triton"
HELP = "write a model repository for Triton Inference Server"
EPILOG = """\
variants:
  tensorrt      Triton's tensorrt backend on model.plan. It is full TensorRT: a plan of TensorRT-RTX is refused
  python        Triton's Python backend on svdq_trt.runtime: Session on a GPU, OnnxSession with --device cpu
  onnxruntime   Triton's onnxruntime backend on model.onnx; slow, as the svdq nodes run as standard operators

examples:
  svdq-trt triton engines/sdxl-sm_89 --repository models --variant python
  svdq-trt triton engines/sdxl-sm_90 --repository models --dynamic-batching 2000
  svdq-trt triton engines/sdxl-tiny-sm_89 --repository models --variant python --device cpu --name tiny
"""


def add_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("engine", type=Path, help="folder with manifest.json")
    p.add_argument("--repository", type=Path, required=True, metavar="DIR", help="made if missing; other models stay")
    p.add_argument("--name", help="of the model in Triton (default: the engine folder's name)")
    p.add_argument("--variant", default="tensorrt", help="tensorrt, python or onnxruntime (default tensorrt)")
    p.add_argument("--device", default="gpu", help="gpu or cpu (default gpu)")
    p.add_argument(
        "--instances",
        type=int,
        default=1,
        metavar="N",
        help="copies of the model per device, each with its own memory (default 1); each runs one request at a time",
    )
    p.add_argument(
        "--dynamic-batching",
        type=int,
        metavar="MICROSECONDS",
        help="merge waiting requests along the "
        "batch axis, for so long; clients then send inputs of shape [batch] as [batch, 1]",
    )


def run(args: argparse.Namespace) -> int:
    if not 1 <= args.instances <= 64:
        raise UsageError("--instances", str(args.instances), "1 to 64")
    if args.dynamic_batching is not None and not 0 <= args.dynamic_batching <= 10_000_000:
        raise UsageError("--dynamic-batching", str(args.dynamic_batching), "0 to 10000000 microseconds")
    from svdq_trt.serve.config import Serving
    from svdq_trt.serve.repository import write_model

    name = args.engine.resolve().name if args.name is None else args.name
    serving = Serving(name, args.variant, args.device, args.instances, args.dynamic_batching)
    written = write_model(args.engine, args.repository, serving)
    say(f"{written.folder}: {_about(written.config)}")
    for when, command in written.commands:
        say("", f"{when or 'start'}:", f"  {command}")
    if serving.variant == "python":
        mib = written.largest_bytes / 2**20
        say(
            "",
            "The Python of Triton's Python backend needs svdq-trt. Tensors pass through /dev/shm: the largest "
            f"request takes {mib:.1f} MiB there, per instance.",
        )
    return EXIT_OK


def _about(config: Any) -> str:
    """One line about a model: ``Triton's python backend (runtime session), max_batch_size 0: ...``."""
    runtime = {key: value.string_value for key, value in config.parameters.items()}.get("svdq_trt_runtime")
    batch = config.max_batch_size
    shapes = f"requests merged up to batch {batch}" if batch else "shapes are the engine's, batch axis included"
    inside = f" (runtime {runtime})" if runtime else ""
    return f"Triton's {config.backend} backend{inside}, max_batch_size {batch}: {shapes}"
