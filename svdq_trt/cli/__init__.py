"""The command line: ``svdq-trt``."""

from __future__ import annotations

from svdq_trt.cli.main import main, parse

__all__ = ["main", "parse"]
