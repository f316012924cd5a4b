"""The commands, one module each: NAME, HELP, EPILOG, add_options(parser), run(args) -> exit code.

Importing a command must stay light (no torch, no TensorRT): heavy modules are imported inside `run`.
"""

from __future__ import annotations

import argparse
from typing import Protocol

from svdq_trt.cli import (
    bench,
    build,
    diff,
    finish,
    import_,
    inspect_,
    models,
    quantize,
    report,
    run,
    sensitivity,
    triton,
    verify,
    warm,
)
from svdq_trt.cli.to_other import to_comfy, to_lite, to_nunchaku


class Command(Protocol):
    """The interface of a command's module.

    Attributes:
        NAME: the word after ``svdq-trt``.
        HELP: one line for the list of commands.
        EPILOG: text below the options in its own ``--help``; may be empty.
    """

    NAME: str
    HELP: str
    EPILOG: str

    def add_options(self, p: argparse.ArgumentParser) -> None:
        """Declare the command's arguments."""

    def run(self, args: argparse.Namespace) -> int:
        """Run the command; returns the exit code. Raises SvdqError for bad input."""


#: in the order of `svdq-trt --help`
ALL: tuple[Command, ...] = (
    build,
    quantize,
    finish,
    warm,
    verify,
    diff,
    bench,
    sensitivity,
    report,
    run,
    inspect_,
    import_,
    to_nunchaku,
    to_lite,
    to_comfy,
    triton,
    models,
)
#: old word -> the command's name now; still understood, with a note, for one release
RENAMED = {"export": to_nunchaku.NAME}
