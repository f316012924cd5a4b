"""The options of commands that run engine folders: in which runtime, on which device, what is allowed."""

from __future__ import annotations

import argparse
from typing import Any


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


def opening(args: argparse.Namespace) -> dict[str, Any]:
    """Arguments of runtime.choice.Opening from the options of `add_running`."""
    return {name: getattr(args, name) for name in ("allow_host_code", "allow_arch_mismatch", "device", "onnx_device")}
