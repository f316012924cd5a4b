"""``svdq-trt``: build, finish, verify, models. Thin: parse, call, print, exit code."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from svdq_trt import __version__
from svdq_trt.errors import EXIT_BUG, EXIT_INCOMPLETE, EXIT_OK, EXIT_USAGE, ArtifactError, SvdqError
from svdq_trt.spec.archs import AUTO_FORMAT, KERNELS, parse_arch
from svdq_trt.spec.formats import FORMATS

if TYPE_CHECKING:
    from svdq_trt.compile.run import Built

_EXAMPLES = """\
examples:
  svdq-trt build --model sdxl-tiny --arch sm_89 --random-weights 0      first contact: a minute, no download
  svdq-trt build --model sdxl --arch sm_89 --checkpoint ./sdxl-base     a diffusers folder
  svdq-trt build --model sdxl --arch sm_89 --checkpoint my.safetensors  a single file
  svdq-trt build --model sdxl --arch sm_86 --arch sm_120 --min-sqnr 15  two engines, gated

exit codes: 0 done, 1 bad input, 2 bad arguments, 3 --min-sqnr missed, 4 all but a plan is written, 70 our bug
"""


class _Parser(argparse.ArgumentParser):
    """argparse with our error line: no usage dump in front of it."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, f"{self.prog}: {message}. See {self.prog} --help.\n")


def _build_options(p: argparse.ArgumentParser) -> None:
    archs = ", ".join(f"sm_{a}" for a in KERNELS)
    auto = "; ".join(f"sm_{a} {f.name}" for a, (f, _) in AUTO_FORMAT.items())
    p.add_argument("--model", required=True, help="a name from `svdq-trt models`")
    p.add_argument("--arch", action="append", required=True, metavar="SM", help=f"target GPU, repeatable: {archs}")
    source = p.add_argument_group("weights (default: the model's hub id, from the local cache first)")
    source.add_argument("--checkpoint", metavar="PATH", help="diffusers folder, one .safetensors, or a hub id")
    source.add_argument("--random-weights", type=int, metavar="SEED", help="made-up weights with realistic outliers")
    q = p.add_argument_group("quantization")
    q.add_argument("--format", default="auto", help=f"auto ({auto}) or {', '.join(FORMATS)}")
    q.add_argument("--rank", type=int, default=32, metavar="R", help="rank of the 16-bit branch (default 32)")
    q.add_argument("--preset", default="fast", help="smoothing search: fast, default or full (default fast)")
    q.add_argument("--calibration", type=Path, metavar="FILE", help="safetensors with model inputs, stacked; "
                   "default: synthetic")  # fmt: skip
    q.add_argument("--skip", action="append", default=[], metavar="PATTERN", help="keep linears in 16 bit, repeatable")
    e = p.add_argument_group("engine")
    for name, unit in (("batch", "images"), ("height", "pixels"), ("width", "pixels")):
        e.add_argument(f"--{name}", metavar="MIN:OPT:MAX", help=f"{unit}; one number fixes it")
    e.add_argument("--backend", default="auto", help="auto, tensorrt-rtx (builds for other GPUs) or tensorrt")
    e.add_argument("--out", type=Path, default=Path("engines"), metavar="DIR", help="default ./engines")
    c = p.add_argument_group("check and reuse")
    c.add_argument("--check", action=argparse.BooleanOptionalAction, default=True,
                   help="compare with the FP16 model in ONNX Runtime, at the smallest profile shape")  # fmt: skip
    c.add_argument("--min-sqnr", type=float, metavar="DB", help="fail (exit code 3) below this output SQNR")
    c.add_argument("--force", action="store_true", help="run every stage again")


def _parser() -> _Parser:
    parser = _Parser("svdq-trt", description="From a diffusion model to a TensorRT engine with 4-bit SVDQuant linears.",
                     epilog=_EXAMPLES, formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("--version", action="version", version=f"svdq-trt {__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    build = commands.add_parser("build", help="checkpoint -> engine folder", epilog=_EXAMPLES,
                                formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    _build_options(build)
    finish = commands.add_parser("finish", help="build the plan of an engine folder that lacks one, on its target")
    finish.add_argument("engine", type=Path, help="folder with model.onnx and manifest.json")
    finish.add_argument("--backend", default="auto", help="auto, tensorrt-rtx or tensorrt")
    verify = commands.add_parser("verify", help="check an engine folder: manifest, arch, plugin, digests")
    verify.add_argument("engine", type=Path, help="folder with manifest.json")
    verify.add_argument("--arch", metavar="SM", help="the GPU it must be for")
    commands.add_parser("models", help="list models, formats and architectures")
    for sub in (build, finish, verify):
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
    return parser


def _build(args: argparse.Namespace) -> int:
    archs = tuple(dict.fromkeys(parse_arch(text) for text in args.arch))  # before torch loads: typos answer at once
    from svdq_trt.compile.config import BuildConfig, Range

    ranges = {
        name: None if text is None else Range.parse(f"--{name}", text)
        for name, text in (("batch", args.batch), ("height", args.height), ("width", args.width))
    }
    config = BuildConfig(
        model=args.model, archs=archs, out=args.out, checkpoint=args.checkpoint, random_weights=args.random_weights,
        format=args.format, rank=args.rank, **ranges, preset=args.preset, calibration=args.calibration,
        backend=args.backend, check=args.check, min_sqnr=args.min_sqnr, force=args.force, skip=tuple(args.skip),
    )  # fmt: skip
    from svdq_trt.compile.run import build, gate
    from svdq_trt.compile.summary import print_summary

    built = build(config)
    print_summary(built)
    code = _report_incomplete(built)
    if config.min_sqnr is not None:
        gate(built, config.min_sqnr)
    return code


def _report_incomplete(built: Sequence[Built]) -> int:
    missing = [one for one in built if one.incomplete is not None]
    for one in missing:
        arch = one.manifest["arch"]
        print(f"{one.engine.folder}: no plan: {one.incomplete} Everything else is written. "
              f"On a machine with an {arch} GPU and TensorRT: svdq-trt finish {one.engine.folder}")  # fmt: skip
    return EXIT_INCOMPLETE if missing else EXIT_OK


def _finish(args: argparse.Namespace) -> int:
    from svdq_trt.compile.finish import finish

    print(f"{finish(args.engine, args.backend)}: done")
    return EXIT_OK


def _verify(args: argparse.Namespace) -> int:
    from svdq_trt.engine import manifest, plugin_lib

    arch = None if args.arch is None else parse_arch(args.arch)
    data = manifest.verify(args.engine, arch, plugin_lib.find().version)
    print(f"{args.engine}: {data['model']} for {data['arch']}, {data['format']} rank {data['rank']}, "
          f"{data['backend']['name']} {data['backend']['version']}: manifest and digests agree")  # fmt: skip
    return EXIT_OK


def _models(args: argparse.Namespace) -> int:
    from svdq_trt.compile.summary import print_models

    print_models()
    return EXIT_OK


_COMMANDS = {"build": _build, "finish": _finish, "verify": _verify, "models": _models}


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line; exits with code 2 and one line where it cannot be meant."""
    return _parser().parse_args(argv)


def _refused(error: SvdqError, debug: bool) -> int:
    if debug:
        traceback.print_exc()
    print(f"svdq-trt: {error}", file=sys.stderr)
    return error.exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (see ``svdq-trt --help``)."""
    args = parse(argv)
    try:
        return _COMMANDS[args.command](args)
    except SvdqError as error:
        return _refused(error, args.debug)
    except KeyboardInterrupt:
        print("svdq-trt: interrupted. Finished stages are kept; run the same command to go on.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except OSError as error:  # a folder that cannot be made, a link that cannot be set, a full disk
        where, got = str(error.filename or "file"), error.strerror or str(error)
        return _refused(ArtifactError(where, got, "a readable and writable place with free space"), args.debug)
    except Exception as error:
        if args.debug:
            traceback.print_exc()
        print(f"svdq-trt: internal error: {type(error).__name__}: {error}. Run with --debug and report it.",
              file=sys.stderr)  # fmt: skip
        return EXIT_BUG


if __name__ == "__main__":
    sys.exit(main())
