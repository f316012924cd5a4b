"""Processes that train and judge: an error on the GPU can spoil a whole process, so each model has its own."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from trained.train import MODES


def start(script: str, options: Mapping[str, object], mode: str) -> subprocess.Popen[bytes]:
    """Start a benchmark as a process of its own, `options` by name without dashes."""
    words = [word for name, value in {**options, "mode": mode}.items() for word in (f"--{name}", str(value))]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}  # before torch is imported, there and in its workers
    if mode == "f32":
        environment |= {"DISABLE_ADDMM_CUDA_LT": "1"}  # disables cuBLASLt, too
    return subprocess.Popen([sys.executable, script, "--own-process", *words], env=environment, start_new_session=True)


def ended(job: subprocess.Popen[bytes], end: float) -> int:
    """Wait for a process; returns its exit code. At `end` it is killed with the processes that it started."""
    try:
        return job.wait(max(end - time.monotonic(), 0))
    except subprocess.TimeoutExpired:
        os.killpg(job.pid, signal.SIGKILL)
        return job.wait()


def tried(name: str, started: Callable[[str], subprocess.Popen[bytes]], first: str, trained: Path, end: float) -> int:
    """The exit code of what trains `name`; where training fails, it is tried again in the next, slower mode.

    Args:
        started: starts the process in a mode. first: the first mode. trained: exists once training is over.
    """
    code = 1
    for mode in MODES[MODES.index(first) :]:
        code = ended(started(mode), end)
        if not code or trained.exists() or time.monotonic() > end:
            break
        print(f"{name}: training failed in mode {mode}, see above", flush=True)
    return code
