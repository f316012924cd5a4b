"""``svdq-trt triton``: an engine folder in a model repository of Triton Inference Server."""

from __future__ import annotations

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svdq_trt.base.errors import EXIT_OK, UsageError
from svdq_trt.base.terminal import say

if TYPE_CHECKING:
    from svdq_trt.serve.config import ServedLora

NAME = "triton"
HELP = "write a model repository for Triton Inference Server"
EPILOG = """\
variants (by default the pipeline where the folder has one, else what serves the engine's plan):
  tensorrt      Triton's tensorrt backend on model.plan. It is full TensorRT: a plan of TensorRT-RTX is refused
  python        Triton's Python backend on svdq_trt.runtime: Session on a GPU, OnnxSession with --device cpu
  pipeline      Triton's Python backend from a prompt to a picture, for folders of `svdq-trt build --pipeline`
  onnxruntime   Triton's onnxruntime backend on model.onnx; slow, as the svdq nodes run as standard operators

examples:
  svdq-trt triton engines/sdxl-sm_89 --repository models --warm-up --cuda-graphs
  svdq-trt triton engines/sdxl-sm_89 --repository models --dynamic-batching 2000
  svdq-trt triton engines/sdxl-sm_89-new --repository models --name sdxl-sm_89 --model-version 2
  svdq-trt triton engines/sdxl-tiny-sm_89 --repository models --device cpu --name tiny
"""


def add_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("engine", type=Path, help="folder with manifest.json")
    p.add_argument("--repository", type=Path, required=True, metavar="DIR", help="made if missing; other models stay")
    p.add_argument("--name", help="of the model in Triton (default: the engine folder's name)")
    p.add_argument("--variant", help="tensorrt, python, pipeline or onnxruntime (default: see below)")
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
    p.add_argument(
        "--model-version",
        type=int,
        metavar="N",
        help="write this version folder beside those that are there (default: 1 is the only one)",
    )
    p.add_argument("--warm-up", action="store_true", help="run at the profile's opt shapes before the model is ready")
    p.add_argument("--cuda-graphs", action="store_true", help="replay CUDA graphs: a shape's from its third run on")
    p.add_argument(
        "--lora",
        action="append",
        default=[],
        metavar="NAME=FILE[:STRENGTH]",
        help="a LoRA that requests can name, for an engine with LoRA slots; may be given several times",
    )


def run(args: argparse.Namespace) -> int:
    if not 1 <= args.instances <= 64:
        raise UsageError("--instances", str(args.instances), "1 to 64")
    if args.dynamic_batching is not None and not 0 <= args.dynamic_batching <= 10_000_000:
        raise UsageError("--dynamic-batching", str(args.dynamic_batching), "0 to 10000000 microseconds")
    if args.model_version is not None and not 1 <= args.model_version < 2**31:
        raise UsageError("--model-version", str(args.model_version), "1 or more")
    from svdq_trt.serve.config import OURS, Serving
    from svdq_trt.serve.repository import write_model
    from svdq_trt.serve.variants import usual_variant

    name = args.engine.resolve().name if args.name is None else args.name
    variant = usual_variant(args.engine, args.device) if args.variant is None else args.variant
    serving = Serving(
        name,
        variant,
        args.device,
        args.instances,
        args.dynamic_batching,
        args.model_version,
        args.warm_up,
        args.cuda_graphs,
        tuple(_lora(text) for text in args.lora),
    )
    written = write_model(args.engine, args.repository, serving)
    say(f"{written.folder}: {_about(written.config)}")
    for when, command in written.commands:
        say("", f"{when or 'start'}:", f"  {command}")
    if serving.variant in OURS:
        extra = " with its extra serve-pipeline" if serving.variant == "pipeline" else ""
        mib = written.largest_bytes / 2**20
        say(
            "",
            f"The Python of Triton's Python backend needs svdq-trt{extra}. Tensors pass through /dev/shm: the largest "
            f"request takes {mib:.1f} MiB there, per instance.",
        )
    return EXIT_OK


def _lora(text: str) -> ServedLora:
    from svdq_trt.build.config import LoraOption
    from svdq_trt.serve.config import ServedLora

    name, separator, rest = text.partition("=")
    if not separator or not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise UsageError("--lora", f"'{text}'", "NAME=FILE or NAME=FILE:STRENGTH, NAME of letters, digits, '_' and '-'")
    file = LoraOption.parse(rest)
    file.check()
    return ServedLora(name, file.path, file.strength)


def _about(config: Any) -> str:
    """One line about a model: ``Triton's python backend (runtime session), max_batch_size 0: ...``."""
    runtime = {key: value.string_value for key, value in config.parameters.items()}.get("svdq_trt_runtime")
    batch = config.max_batch_size
    shapes = f"requests merged up to batch {batch}" if batch else "shapes are the engine's, batch axis included"
    inside = f" (runtime {runtime})" if runtime else ""
    return f"Triton's {config.backend} backend{inside}, max_batch_size {batch}: {shapes}"
