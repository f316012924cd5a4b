"""Entry point of a stage's process: ``python -m svdq_trt.compile.worker`` with one JSON job on stdin.

A process per stage returns its memory to the system, and a library that aborts takes only the stage with it.
Everything that libraries print goes to the stage's log; only events go to the pipe.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import resource
import signal
import sys
import traceback

from svdq_trt.compile.device import gpu_memory_error
from svdq_trt.compile.events import PEAK_RSS, Emitter
from svdq_trt.errors import EXIT_BUG, EXIT_OK, EXIT_USER, SvdqError

_PR_SET_PDEATHSIG = 1


def main() -> int:
    """Run one stage; the exit code says how it ended."""
    # A killed build must not leave a stage running on for minutes.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(EXIT_USER))  # as an exception, so that files are cleaned up
    pipe = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # stdout of libraries -> the log that the parent put behind stderr
    emitter = Emitter(pipe)
    job = json.load(sys.stdin)
    try:
        stage = importlib.import_module(f"svdq_trt.compile.stages.{job['stage']}")
        value = stage.run(job["args"], emitter.progress)
        emitter.result(value | {PEAK_RSS: 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss})
    except SvdqError as error:
        traceback.print_exc()
        emitter.error(error)
        return EXIT_USER
    except OSError as error:  # full or unwritable disk, vanished file
        traceback.print_exc()
        where = str(error.filename or job["stage"])
        emitter.error(SvdqError(where, error.strerror or str(error), "a readable and writable file with free space"))
        return EXIT_USER
    except MemoryError:
        emitter.error(_out_of_memory(job["stage"]))
        return EXIT_USER
    except Exception as error:
        traceback.print_exc()
        if "not enough memory" in str(error):  # torch's CPU allocator raises RuntimeError
            emitter.error(_out_of_memory(job["stage"]))
            return EXIT_USER
        if type(error).__name__ == "OutOfMemoryError":  # torch's for a GPU; most stages run without torch
            emitter.error(gpu_memory_error(f"stage '{job['stage']}'"))
            return EXIT_USER
        return EXIT_BUG  # our bug: the log has the traceback
    return EXIT_OK


def _out_of_memory(stage: str) -> SvdqError:
    return SvdqError(f"stage '{stage}'", "out of memory", "more RAM", "Close other programs, or use --no-check.")


if __name__ == "__main__":
    sys.exit(main())
