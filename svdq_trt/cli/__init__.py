"""The command line: ``svdq-trt``."""

from __future__ import annotations

from svdq_trt.base.child import forget_current_folder

forget_current_folder()  # before anything more is imported

from svdq_trt.cli.main import main, parse  # noqa: E402

__all__ = ["main", "parse"]
