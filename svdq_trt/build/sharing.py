"""Several processes of one torchrun: rank 0 runs the command, the others quantize a share of its layers."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from svdq_trt.base.errors import EXIT_OK, EXIT_USER, SvdqError, error_fields
from svdq_trt.base.progress import Progress
from svdq_trt.base.ranks import POLL_S, connect, rank, size
from svdq_trt.build.process import Done, StageCrashError, StageRunner
from svdq_trt.build.stage import Result, SharedStage, Stage, from_json

R = TypeVar("R", bound=Result)


class SharingRunner(StageRunner):
    """Rank 0's runner: a SharedStage runs on all ranks, any other stage on rank 0 only."""

    def __init__(self) -> None:
        super().__init__()
        self._jobs = 0

    def run(self, stage: Stage[R], log: Path, progress: Progress) -> Done[R]:
        """Run `stage` as StageRunner does; also raises the error of another rank."""
        if size() > 1 and isinstance(stage, SharedStage):
            stage = replace(stage, job=self._jobs)
            connect().set(f"job/{self._jobs}", json.dumps({"stage": stage.to_json(), "log": str(log)}))
            self._jobs += 1
        return super().run(stage, log, progress)


def dismiss() -> None:
    """Let the other ranks end; rank 0 calls this however its command ended."""
    if size() > 1:
        with contextlib.suppress(RuntimeError):  # the store is gone, and so are they
            connect().set("end", "")


def help_out() -> int:
    """Run rank 0's jobs, on another rank, until rank 0 says that there are no more. Returns the exit code.

    Nothing is printed: rank 0 reports what fails here.
    """
    try:
        store, runner, number = connect(), StageRunner(), 0
        while (job := _next_job(store, number)) is not None:
            log = Path(job["log"])
            try:
                runner.run(from_json(job["stage"]), log.with_suffix(f".rank{rank()}.log"), lambda *_: None)
            except (SvdqError, StageCrashError) as error:
                _publish(store, number, error)
            except OSError as error:
                reason = error.strerror or str(error)
                _publish(
                    store,
                    number,
                    SvdqError(f"rank {rank()}: {error.filename or log}", reason, "the folder that rank 0 writes"),
                )
            number += 1
    except KeyboardInterrupt:
        return 130
    except RuntimeError:  # the store is gone, and torchrun with it
        return EXIT_USER
    return EXIT_OK


def _next_job(store: Any, number: int) -> dict[str, Any] | None:
    while not store.check([f"job/{number}"]):
        if store.check(["end"]):
            return None
        time.sleep(POLL_S)
    job: dict[str, Any] = json.loads(store.get(f"job/{number}"))
    return job


def _publish(store: Any, number: int, error: SvdqError | StageCrashError) -> None:
    if isinstance(error, StageCrashError):
        error = SvdqError(f"rank {rank()}", str(error), "it to finish")
    store.compare_set(f"{number}/failed", "", json.dumps(error_fields(error)))  # the first one counts
