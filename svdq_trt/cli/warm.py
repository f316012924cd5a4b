"""``svdq-trt warm``: compile an engine's kernels for this machine's GPU, before the first start."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from svdq_trt.artifact import manifest
from svdq_trt.base.errors import EXIT_OK, SvdqError, first_line
from svdq_trt.base.extras import required_by
from svdq_trt.base.terminal import say
from svdq_trt.cli.running import add_allowed
from svdq_trt.contract.archs import parse_arch

if TYPE_CHECKING:
    from svdq_trt.runtime.choice import Opening

NAME = "warm"
HELP = "compile an engine's kernels ahead, on the GPU that will run it"
EPILOG = """\
TensorRT-RTX compiles an engine when it is opened on a GPU for the first time, for 5 to 20 seconds. This does it now,
for all engines of a pipeline at once, and keeps the result beside the plans; the next start finds it there. It holds
for this GPU model, driver and TensorRT-RTX release; elsewhere a start compiles anew. A build ends with it where this
machine's GPU is the one that it is for.

example:
  svdq-trt warm engines/sdxl-sm_89
"""


def add_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("engine", type=Path, help="engine folder, also a pipeline's")
    r = p.add_argument_group("running")
    r.add_argument("--device", type=int, default=0, metavar="N", help="CUDA device (default 0)")
    add_allowed(r)


def run(args: argparse.Namespace) -> int:
    with required_by("svdq-trt warm"):
        from svdq_trt.runtime.choice import Opening

    _warm(args.engine, Opening(args.allow_host_code, args.allow_arch_mismatch, args.device))
    return EXIT_OK


def add_no_warm(p: argparse._ActionsContainer) -> None:
    """Add the option of commands that end with `warm_if_here`."""
    p.add_argument(
        "--no-warm",
        dest="warm",
        action="store_false",
        help="where this machine's GPU is the target, leave its kernels to the first start, as `svdq-trt warm -h` says",
    )


def warm_if_here(folder: Path) -> None:
    """Compile the kernels of an engine that this machine's GPU is the target of. That they are missing is no error."""
    from svdq_trt.engine.gpu import local_arch

    data = manifest.read(folder)
    if data.backend is None or data.backend.name != "tensorrt-rtx" or parse_arch(data.arch) != local_arch():
        return
    from svdq_trt.runtime.choice import Opening

    try:
        _warm(folder, Opening())
    except Exception as error:  # another program may hold the GPU's memory; whatever it is, the engine is built
        reason = error if isinstance(error, SvdqError) else first_line(error)
        say(f"The kernels were not compiled, the first start does that: {reason}", file=sys.stderr)


def _warm(folder: Path, how: Opening) -> None:
    from svdq_trt.runtime.warm import warm

    say(f"{folder}: compiling for CUDA device {how.device}", file=sys.stderr)
    for one, seconds in warm(folder, how).items():
        say(f"{one}: " + ("the kernels were there" if seconds is None else f"compiled in {seconds:.1f} s"))
