"""A stage's process, with Stage.to_json on stdin: forked by fork_server.py, or ``python -P -m svdq_trt.build.worker``.

A process per stage returns its memory to the system, and a library that aborts takes only the stage with it.
Everything that libraries print goes to the stage's log; only events go to the pipe.
"""

from __future__ import annotations

import ctypes
import os
import resource
import signal
import sys
import traceback

from svdq_trt.base.errors import EXIT_BUG, EXIT_OK, EXIT_USER, SvdqError
from svdq_trt.base.memory import out_of_memory
from svdq_trt.build.events import Emitter
from svdq_trt.build.stage import from_json, to_builtins

_PR_SET_PDEATHSIG = 1
_OF_THE_CHECK = ("reference_export", "reference_run", "check_run", "compare")


def end_with_parent() -> None:
    """Let this process end when its parent does: a killed build must not leave a stage running for minutes."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def main() -> int:
    """Run one stage; the exit code says how it ended."""
    end_with_parent()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_USER))  # as an exception, so that files are cleaned up
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # stdout of libraries -> the log that the parent opened as stderr
    emitter = Emitter(pipe)
    name = "unknown"
    try:
        stage = from_json(sys.stdin.read())
        name = stage.name
        value = stage.run(emitter.progress)
        peak = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        emitter.result(None if value is None else to_builtins(value), peak)
    except SvdqError as error:
        traceback.print_exc()
        emitter.error(error)
        return EXIT_USER
    except Exception as error:
        traceback.print_exc()
        reported = user_error(name, error)
        if reported is None:
            return EXIT_BUG  # our bug: the log has the traceback
        emitter.error(reported)
        return EXIT_USER
    return EXIT_OK


def user_error(stage: str, error: Exception) -> SvdqError | None:
    """The user error for an exception caused by this machine or its disk; None for a bug of ours."""
    where = f"stage '{stage}'"
    memory = out_of_memory(where, error, "use --no-check" if stage in _OF_THE_CHECK else "")
    if memory is None and isinstance(error, OSError):  # full or unwritable disk, vanished file
        reason = error.strerror or str(error)
        return SvdqError(str(error.filename or where), reason, "a readable and writable file with free space")
    return memory


if __name__ == "__main__":
    sys.exit(main())
