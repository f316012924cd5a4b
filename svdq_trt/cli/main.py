"""``svdq-trt``: one parser over svdq_trt/cli, and what an exit code means. Thin: parse, call, exit code."""

from __future__ import annotations

import argparse
import os
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from svdq_trt import __version__
from svdq_trt.base import ranks
from svdq_trt.base.errors import EXIT_BUG, EXIT_OK, EXIT_USAGE, ArtifactError, SvdqError
from svdq_trt.base.extras import required_by
from svdq_trt.base.memory import out_of_memory
from svdq_trt.base.terminal import quoted, say
from svdq_trt.build import sharing
from svdq_trt.cli import build
from svdq_trt.cli.commands import ALL, RENAMED

_EXIT_CODES = """
exit codes: 0 done, 1 bad input, 2 bad arguments, 3 a required accuracy missed, 4 all but a plan is written, 70 our bug
"""


class _Parser(argparse.ArgumentParser):
    """argparse's parser with our error line, not preceded by a usage dump."""

    def error(self, message: str) -> NoReturn:
        self.exit(EXIT_USAGE, quoted(f"{self.prog}: {message}. See {self.prog} --help.") + "\n")


def _parser() -> _Parser:
    parser = _Parser(
        "svdq-trt",
        description="From a diffusion model to a TensorRT engine with 4-bit SVDQuant linears.",
        epilog=build.EPILOG + _EXIT_CODES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"svdq-trt {__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND", parser_class=_Parser)
    for command in ALL:
        sub = commands.add_parser(
            command.NAME,
            help=command.HELP,
            epilog=command.EPILOG + _EXIT_CODES,
            formatter_class=argparse.RawDescriptionHelpFormatter,
        )
        command.add_options(sub)
        sub.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help="show tracebacks")
    return parser


def parse(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse a command line; exits with code 2 and one line if it makes no sense."""
    return _parser().parse_args(_renamed(list(sys.argv[1:] if argv is None else argv)))


def _renamed(words: list[str]) -> list[str]:
    """The words with the command's present name; prints a note on stderr if it was an old one."""
    at = next((i for i, word in enumerate(words) if not word.startswith("-")), len(words))
    if at == len(words) or words[at] not in RENAMED:
        return words
    new = RENAMED[words[at]]
    say(f"svdq-trt: {words[at]} is now called {new}. The old name goes with the next release.", file=sys.stderr)
    return [*words[:at], new, *words[at + 1 :]]


def _trace() -> None:
    say(*traceback.format_exc().splitlines(), file=sys.stderr)


def _refused(error: SvdqError, debug: bool) -> int:
    if debug:
        _trace()
    say(f"svdq-trt: {error}", file=sys.stderr)
    return error.exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code (see ``svdq-trt --help``).

    Under torchrun, rank 0 runs it and prints for all ranks; the others work for it.
    """
    if ranks.rank():
        return sharing.help_out()
    try:
        return _main(argv)
    finally:
        sharing.dismiss()


def _main(argv: Sequence[str] | None) -> int:
    args = parse(argv)
    try:
        with required_by(args.command):
            return next(command for command in ALL if args.command == command.NAME).run(args)
    except SvdqError as error:
        return _refused(error, args.debug)
    except KeyboardInterrupt:
        say("svdq-trt: interrupted. Finished stages are kept; run the same command to continue.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_OK
    except Exception as error:
        reported = out_of_memory(args.command, error)
        if reported is None and isinstance(error, OSError):  # a folder that cannot be made, a link that cannot be set
            where, got = str(error.filename or "file"), error.strerror or str(error)
            reported = ArtifactError(where, got, "a readable and writable place with free space")
        if reported is not None:
            return _refused(reported, args.debug)
        if args.debug:
            _trace()
        say(
            f"svdq-trt: internal error: {type(error).__name__}: {error}. Run with --debug and report it.",
            file=sys.stderr,
        )
        return EXIT_BUG
