"""Options and output shared by the kernels' benchmarks (bench_linear.py, bench_mlp.py, bench_gemv.py)."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import kernel_calls as calls
import torch

DTYPES = {"f16": torch.float16, "bf16": torch.bfloat16}


def make_parser(doc: str, names: str, seconds: float, warm: float) -> argparse.ArgumentParser:
    """Make a parser with the shared options; --only chooses among `names`, `seconds` and `warm` are defaults.

    `doc` is the script's: its first line describes it.
    """
    parser = argparse.ArgumentParser(description=doc.splitlines()[0])
    parser.add_argument("--library", type=Path, default=calls.find_library(), help="libsvdq.so (%(default)s)")
    parser.add_argument("--rank", type=int, default=32)
    parser.add_argument("--only", default="", help=f"substring of {names}")
    parser.add_argument("--seconds", type=float, default=seconds, help="per timing (%(default)s)")
    parser.add_argument(
        "--warm", type=float, default=warm, help="seconds a body runs before it is timed, each time (%(default)s)"
    )
    parser.add_argument("--out", type=Path, default=None, help="JSON")
    return parser


def add_dtype(parser: argparse.ArgumentParser) -> None:
    """Add the option for the dtype of x and y, a key of DTYPES."""
    parser.add_argument("--dtype", default="bf16", choices=tuple(DTYPES))


def need_gpu(fix: str = "") -> None:
    """End the script, in one line with `fix`, where there is no GPU to measure on."""
    if not torch.cuda.is_available():
        sys.exit(f"torch {torch.__version__}: sees no CUDA GPU, want one to measure on. {fix}".rstrip())


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, calls.Library]:
    """Parse the command line and load the kernels; seeds torch. Exits if no library or no GPU is found."""
    args = parser.parse_args()
    if args.library is None:
        parser.error("no libsvdq.so found: build it, or pass --library")
    need_gpu()
    torch.manual_seed(0)
    return args, calls.Library(args.library)


def save(args: argparse.Namespace, settings: tuple[str, ...], rows: list[dict[str, Any]], **measured: float) -> None:
    """Write `rows` to --out, if given, with the machine, figures `measured` on it, and the options in `settings`."""
    if args.out:
        machine = {"gpu": torch.cuda.get_device_name(), "torch": torch.__version__, **measured}
        chosen = {name: getattr(args, name) for name in settings}
        args.out.write_text(json.dumps({"machine": machine, **chosen, "rows": rows}, indent=1))
