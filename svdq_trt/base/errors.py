"""User errors: one sentence of the form ``where: got, want. Fix.`` and one exit code per kind.

Everything that can go wrong because of an input (arguments, checkpoints, files, this machine) is an
``SvdqError``. Any other exception is a bug of ours; the command line says so and keeps the traceback.
"""

from __future__ import annotations

from typing import Any

from svdq_trt.base.terminal import quoted

EXIT_OK = 0
EXIT_USER = 1  # bad input: checkpoint, model, folder, plan, manifest
EXIT_USAGE = 2  # bad command-line arguments
EXIT_ACCURACY = 3  # --min-sqnr gate failed; every artifact is written
EXIT_INCOMPLETE = 4  # everything but the plan is written: no backend here can build for that arch
EXIT_BUG = 70  # a bug of ours, with a traceback


class SvdqError(Exception):
    """A mistake in the input, reported as ``where: got, want. Fix.`` on one line, whatever names from files hold.

    Args:
        where: the file, layer, option or tensor at fault.
        got: what was found there.
        want: what would have been right.
        fix: one imperative sentence; empty when `want` already says it.
    """

    exit_code = EXIT_USER

    def __init__(self, where: str, got: str, want: str, fix: str = "") -> None:
        self.where, self.got, self.want, self.fix = where, got, want, fix
        super().__init__(quoted(f"{where}: {got}, want {want}." + (f" {fix}" if fix else "")))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.where, self.got, self.want, self.fix)


class UsageError(SvdqError):
    """A command-line argument that makes no sense."""

    exit_code = EXIT_USAGE


class ShapeError(SvdqError):
    """A tensor, layer or profile whose sizes do not fit."""


class RangeError(SvdqError):
    """NaN, Inf, or a value outside its range."""


class ArtifactError(SvdqError):
    """A file that is missing, truncated, malformed, or made for something else."""


class UnsupportedError(SvdqError):
    """A combination nothing on this machine (or nothing at all) can run."""


class AccuracyError(SvdqError):
    """The check ran and the result is below ``--min-sqnr``."""

    exit_code = EXIT_ACCURACY


class IncompleteError(SvdqError):
    """All stages before the plan are done; the plan needs another machine."""

    exit_code = EXIT_INCOMPLETE


def first_line(error: BaseException, most: int = 160) -> str:
    """The first line of what a library's error says, or else its class, in at most `most` characters."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:most]


def error_fields(error: SvdqError) -> dict[str, str]:
    """A user error as JSON, for `rebuild_error`."""
    return {"type": type(error).__name__, "where": error.where, "got": error.got, "want": error.want, "fix": error.fix}


def rebuild_error(fields: dict[str, str]) -> SvdqError:
    """The SvdqError that `error_fields` described in another process."""
    kind = globals().get(fields["type"])
    if not (isinstance(kind, type) and issubclass(kind, SvdqError)):
        kind = SvdqError
    error: SvdqError = kind(fields["where"], fields["got"], fields["want"], fields["fix"])
    return error
