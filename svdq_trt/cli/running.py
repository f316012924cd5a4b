"""The options of commands that run engine folders: in which runtime, on which device, what is allowed."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from svdq_trt.artifact import pipeline_file
from svdq_trt.base.errors import UsageError
from svdq_trt.base.units import parse_bytes


def add_running(p: argparse.ArgumentParser) -> None:
    """Add them."""
    r = p.add_argument_group("running")
    r.add_argument("--runtime", default="auto", help="for engine folders: auto, tensorrt or onnx")
    r.add_argument("--onnx-device", default="auto", help="for ONNX Runtime: auto, cpu or cuda")
    r.add_argument("--device", type=int, default=0, metavar="N", help="CUDA device for TensorRT (default 0)")
    add_allowed(r)


def add_allowed(r: argparse._ActionsContainer) -> None:
    """Add those that allow what a session refuses."""
    r.add_argument(
        "--allow-host-code",
        action="store_true",
        help="run the plugin library that the folder brings; only for folders you trust",
    )
    r.add_argument("--allow-arch-mismatch", action="store_true", help="try a plan made for another GPU")


def add_weight_budget(r: argparse._ActionsContainer) -> None:
    """Add that of a pipeline's engines; see `weight_budgets`."""
    r.add_argument(
        "--weight-budget",
        action="append",
        default=[],
        metavar="[PART=]BYTES",
        help="weights on the GPU, as 2GB of the denoiser's or text_encoder_2=0 of a part's, repeatable; for engines "
        "built with --weight-streaming",
    )


def weight_budgets(texts: Sequence[str], folder: Path) -> dict[str, int] | None:
    """The weight_budget of runtime.loading.load for `--weight-budget`, given `texts`; None without any.

    Raises:
        UsageError: no size, or two of one engine. ArtifactError: `folder` has no pipeline.json.
    """
    found: dict[str, int] = {}
    for text in texts:
        part, _, size = text.rpartition("=")
        name = part or pipeline_file.read(folder).denoiser
        if name in found:
            raise UsageError("--weight-budget", f"two of {name[:80]}", "one of an engine")
        found[name] = parse_bytes("--weight-budget", size)
    return found or None


def opening(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of runtime.choice.Opening from the options of `add_running`."""
    return {name: getattr(args, name) for name in ("allow_host_code", "allow_arch_mismatch", "device", "onnx_device")}
