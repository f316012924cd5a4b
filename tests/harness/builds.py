"""The builder as users call it, and sdxl-tiny's engines, which many tests start from and one test builds."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from svdq_trt.contract.ops import linear_names
from tests.harness import tiny_pipelines

ROOT = Path(__file__).resolve().parents[2]
TIMEOUT_S = 1800
HAS_TIME = "SVDQ_ALL" in os.environ
#: whole builds for which a test run has no time
some_minutes = pytest.mark.skipif(not HAS_TIME, reason="takes minutes: SVDQ_ALL=1 runs it")
#: one size of everything: for tests of other things, as a graph with dynamic sizes takes twice the time to trace
FIXED = ("--batch", "1", "--height", "64", "--width", "64")


def command(model: str, out: Path, *words: str) -> list[str]:
    """`build_engines.py` for a model with random weights; the expected figures are those of `fast`."""
    line = [sys.executable, str(ROOT / "build_engines.py"), "--model", model, "--random-weights", "0"]
    return [*line, "--preset", "fast", "--out", str(out), *words]


def build(model: str, out: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(model, out, *words), capture_output=True, text=True, timeout=TIMEOUT_S)


def svdq(*words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "svdq_trt.cli", *words]
    return subprocess.run(line, capture_output=True, text=True, timeout=TIMEOUT_S)


def plugin_nodes(manifest: dict[str, Any]) -> list[str]:
    """The recipe's nodes in the engine's plugin layers, sorted; a layer of two linears stands for two nodes."""
    return sorted(node for layer in manifest["plugin_layers"] for node in linear_names(layer))


def kill_on_the_way(line: list[str], partial: Path, layers: int) -> None:
    """Run `line` and kill it, as kill -9 does, once `layers` finished layers lie in `partial`."""
    import psutil

    child = psutil.Popen(line, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    end = time.monotonic() + TIMEOUT_S  # of a child that hangs
    while child.poll() is None and len(list(partial.glob("*/*.safetensors"))) < layers and time.monotonic() < end:
        time.sleep(0.02)
    stages = child.children(recursive=True)
    child.kill()
    child.wait()
    _, alive = psutil.wait_procs(stages, timeout=TIMEOUT_S)  # a stage's process dies with its parent
    assert not alive


class SharedEngines:
    """Engines of sdxl-tiny that the first test to ask for them builds, in whichever pytest-xdist worker it runs."""

    def __init__(self, folder: Path) -> None:
        """`folder` is the same for all workers of a run."""
        folder.mkdir(exist_ok=True)
        self.folder, self.engines = folder, folder / "engines"

    def copy(self, out: Path, *archs: str, check: bool = True) -> None:
        """Engines of `archs`, and the stages that builds into `out` reuse; both may be changed there."""
        with (self.folder / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            self._build(archs, check)
            for part in ("shared", *archs):
                name = f"sdxl-tiny-{part}"
                shutil.copytree(self.engines / name, out / name)

    def pipeline(self) -> tuple[Path, Path]:
        """For reading: engines for sm_89 from a prompt to a picture, and diffusers' pipeline, from which they are."""
        out, folder, done = (self.folder / name for name in ("with-parts", "pipeline", "pipeline-done"))
        with (self.folder / "pipeline-lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                self._build_pipeline(out, folder)
                done.touch()
        return out / "sdxl-tiny-sm_89", folder

    def _build_pipeline(self, out: Path, folder: Path) -> None:
        self.copy(out, "sm_89", check=False)
        tiny_pipelines.save_sdxl(folder)
        words = ("--arch", "sm_89", "--no-check", "--pipeline", str(folder), "--weight-streaming", "text_encoder_2")
        first = build("sdxl-tiny", out, *words)
        assert first.returncode == 0, first.stderr
        again = build("sdxl-tiny", out, *words)
        assert again.returncode == 0 and " done " not in again.stderr, again.stderr

    def _build(self, archs: tuple[str, ...], check: bool) -> None:
        """Build whatever is missing."""
        done, failed = self.folder / "done", self.folder / "failed"
        if failed.exists():
            pytest.fail(f"sdxl-tiny could not be built, see the first test that asked for it\n{failed.read_text()}")
        have = set(done.read_text().split()) if done.exists() else set()
        want = {f"{arch}-check" if check else arch for arch in archs} - have
        if not want:
            return
        words = [word for arch in archs for word in ("--arch", arch)]
        got = build("sdxl-tiny", self.engines, *words, "--check" if check else "--no-check")
        # 4: nothing here makes a plan for sm_90; everything else is there.
        if got.returncode != 0 and (got.returncode, archs) != (4, ("sm_90",)):
            failed.write_text(got.stdout + got.stderr)
            pytest.fail(failed.read_text())
        done.write_text(" ".join(have | {*archs} | want))
