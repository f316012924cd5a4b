"""``svdq-trt bench``: how long an engine takes on this GPU, beside other engines and beside PyTorch."""

from __future__ import annotations

import argparse
import json
import sys
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svdq_trt import __version__
from svdq_trt.base.errors import EXIT_OK, UsageError
from svdq_trt.base.files import atomic_write
from svdq_trt.base.terminal import say
from svdq_trt.base.units import parse_bytes
from svdq_trt.cli.running import add_allowed
from svdq_trt.contract.sizes import SIZES

if TYPE_CHECKING:
    from svdq_trt.bench.run import Options, Report

NAME = "bench"
HELP = "time engines on this GPU, beside each other and beside torch.compile"
_MOST = 8  # engines at once
EPILOG = """\
All that is compared is in GPU memory at once and takes turns, so that a GPU that gets warm slows every one alike. A
time is one call of Session from inputs on the GPU to outputs, between CUDA events, as a CUDA graph. "ratio" is the
median over that of the first engine: below 1 is faster. "GPU GB" is what the engine took of the GPU's memory, "open s"
the time from its folder to the first result with all kernels compiled, and "reopen" the same with the runtime cache.
Shares are of the time in which any kernel ran, in one call outside a graph.

--choose DEST makes DEST a relative link to the fastest engine, for Session and all commands to open. The engines must
be one quantized model: rename the folder of a build, build again with another --attention, and compare the two. Only
a free name, or a link to one of these engines, is taken.

Leave the GPU to this command alone. Without a GPU it ends with exit code 1.

examples:
  svdq-trt bench engines/sdxl-sm_89                                  alone, at the sizes that it is tuned for
  svdq-trt bench engines/sdxl-sm_89 --torch --torch fp8 --out s.json   beside diffusers' module, compiled
  svdq-trt bench engines/sdxl-tensorrt engines/sdxl-sm_89 --choose engines/sdxl    keeps the faster attention
"""


def add_options(p: argparse.ArgumentParser) -> None:
    p.add_argument("engines", type=Path, nargs="+", metavar="ENGINE_DIR", help="folder that a build wrote")
    p.add_argument(
        "--torch",
        action="append",
        nargs="?",
        const="16bit",
        default=[],
        metavar="PRECISION",
        help="also diffusers' own module under torch.compile: 16bit (if no word follows), or fp8 for its linears in "
        "e4m3, scaled by row and token; random weights",
    )
    p.add_argument(
        "--weight-budget",
        action="append",
        default=[],
        metavar="BYTES",
        help="also each engine with that much of its weights on the GPU, as 2GB or 0; repeatable",
    )
    p.add_argument("--choose", type=Path, metavar="DEST", help="make DEST a link to the fastest engine")
    m = p.add_argument_group("measuring")
    m.add_argument("--rounds", type=int, default=5, metavar="N", help="turns of each (default 5)")
    m.add_argument("--repeat", type=int, default=20, metavar="N", help="timed calls in a turn (default 20)")
    m.add_argument("--no-graph", dest="graph", action="store_false", help="launch kernels one by one")
    m.add_argument("--no-profile", dest="profile", action="store_false", help="leave out the kernels by kind")
    i = p.add_argument_group("inputs (default: synthetic, at the sizes that the engine is tuned for)")
    i.add_argument("--inputs", type=Path, metavar="FILE", help=".safetensors with tensors named like the inputs")
    i.add_argument("--seed", type=int, default=0, help="of synthetic inputs (default 0)")
    for name, unit in SIZES.items():
        i.add_argument(f"--{name}", type=int, metavar="N", help=unit)
    r = p.add_argument_group("running")
    r.add_argument("--device", type=int, default=0, metavar="N", help="CUDA device (default 0)")
    add_allowed(r)
    p.add_argument("--out", type=Path, metavar="JSON", help="write all figures, and TensorRT's time of each layer")


def run(args: argparse.Namespace) -> int:
    sizes = {name: getattr(args, name) for name in SIZES}
    _check(args, sizes)
    from svdq_trt.bench.choose import place
    from svdq_trt.bench.run import Options, run
    from svdq_trt.bench.table import fastest, table

    options = Options(
        engines=tuple(args.engines),
        torch=tuple(dict.fromkeys(args.torch)),
        rounds=args.rounds,
        repeat=args.repeat,
        graph=args.graph,
        profile=args.profile,
        device=args.device,
        inputs=args.inputs,
        sizes=sizes,
        seed=args.seed,
        weight_budgets=tuple(parse_bytes("--weight-budget", text) for text in args.weight_budget),
        choose=args.choose,
        allow_host_code=args.allow_host_code,
        allow_arch_mismatch=args.allow_arch_mismatch,
    )
    report = run(options, lambda text: say(text, file=sys.stderr))
    how = "as a CUDA graph" if args.graph else "kernel by kernel"
    inputs = ", ".join(f"{name} {value}" for name, value in report.inputs.items())
    say(*textwrap.wrap(f"{report.model} on {report.gpu}, {how}; {inputs}", 80))
    say(*table(report.found))
    chosen = None
    if args.choose is not None:
        chosen = Path(fastest(report.found[: len(args.engines)]).name)
        place(args.choose, chosen, args.engines)
        say(f"{args.choose}: now a link to {chosen}")
    if args.out is not None:
        with atomic_write(args.out) as tmp:
            tmp.write_text(json.dumps(_to_json(report, options, chosen), indent=1, allow_nan=False) + "\n")
    return EXIT_OK


def _check(args: argparse.Namespace, sizes: dict[str, int | None]) -> None:
    if len(args.engines) > _MOST:
        raise UsageError("ENGINE_DIR", f"{len(args.engines)} folders", f"at most {_MOST}")
    for name, value in (("--rounds", args.rounds), ("--repeat", args.repeat)):
        if value < 1:
            raise UsageError(name, str(value), "1 or more")
    if args.choose is not None and args.weight_budget:
        raise UsageError("--choose", "given with --weight-budget", "one of them", "A link holds no budget.")
    if args.inputs is not None and any(sizes.values()):
        raise UsageError("--inputs", "given with sizes", "one of them", "The file's tensors have their own sizes.")
    if args.out is not None and args.out.is_dir():
        raise UsageError("--out", f"{args.out}: a folder", "a file to write")


def _to_json(report: Report, options: Options, chosen: Path | None) -> dict[str, Any]:
    import torch

    from svdq_trt.bench.table import to_json

    return {
        "svdq_trt": __version__,
        "torch": torch.__version__,
        "gpu": report.gpu,
        "model": report.model,
        "inputs": report.inputs,
        "cuda_graph": options.graph,
        "rounds": options.rounds,
        "repeat": options.repeat,
        "contenders": to_json(report.found),
        "chosen": None if chosen is None else str(chosen),
    }
