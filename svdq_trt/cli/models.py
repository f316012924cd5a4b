"""``svdq-trt models``: the support table."""

from __future__ import annotations

import argparse

from svdq_trt.base.errors import EXIT_OK

NAME = "models"
HELP = "list models, formats and architectures"
EPILOG = ""


def add_options(p: argparse.ArgumentParser) -> None:
    pass


def run(args: argparse.Namespace) -> int:
    from svdq_trt.build.summary import print_models

    print_models()
    return EXIT_OK
