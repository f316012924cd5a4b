"""Several ranks under torchrun: shares, one result, and one error however a rank fails. The stage is a small probe."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from svdq_trt.base.ranks import Alone, Crew

ROOT = Path(__file__).resolve().parents[3]
PROBE = """
import os
from dataclasses import dataclass
from pathlib import Path
from svdq_trt.base.errors import RangeError
from svdq_trt.base.ranks import Alone, Crew
from svdq_trt.build.stage import Result, SharedStage

@dataclass(frozen=True)
class Shares(Result):
    files: int
    work: int | None

@dataclass(frozen=True)
class Probe(SharedStage[Shares]):
    name = "probe"
    result = Shares
    label = "probe"
    fail: str

    def run(self, progress):
        crew = Alone() if self.job is None else Crew(self.job)
        crew.calibrated() if crew.rank == 0 else crew.wait_for_calibration()
        costs = [1, 5, 3, 3, 2, 4]
        if crew.rank == 1 and self.fail == "error":
            raise RangeError("layer 4", "NaN", "finite values")
        if crew.rank == 1 and self.fail == "kill":
            os.kill(os.getpid(), 9)
        if crew.rank == 1 and self.fail == "bug":
            1 / 0
        for i in crew.share(costs):
            (self.out / f"{i}.{crew.rank}").write_text("")
            crew.worked(costs[i])
        crew.finished()
        if crew.rank:
            return None
        seen = []
        crew.wait_for_all(seen.append)
        return Shares(len(os.listdir(self.out)), max(seen, default=None))
"""
COMMAND = """
import sys
from pathlib import Path
from probe import Probe
from svdq_trt.base.errors import SvdqError
from svdq_trt.build import sharing
from svdq_trt.cli import models
from svdq_trt.cli.main import main

def run(args):
    runner = sharing.SharingRunner()
    for fail in ("", "error", "kill", "bug"):  # every job has keys of its own in the store
        out = Path(sys.argv[1]) / (fail or "good")
        out.mkdir()
        try:
            value = runner.run(Probe(fail, out=out), Path(sys.argv[1]) / f"{fail}.log", lambda *_: None).value
            print({"files": value.files, "work": value.work})
        except SvdqError as error:
            print(type(error).__name__, error)
            last = error
    raise last

models.run = run
sys.exit(main(["models", *sys.argv[2:]]))
"""


def launch(folder: Path, *args: str, ranks: int = 2) -> subprocess.CompletedProcess[str]:
    site = folder / "site"
    site.mkdir()
    for name, text in (("probe.py", PROBE), ("command.py", COMMAND)):
        (site / name).write_text(text)
    out = folder / "out"
    out.mkdir()
    launcher = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={ranks}", "--standalone"]
    env = os.environ | {"PYTHONPATH": f"{site}:{ROOT}"}
    command = [*launcher, str(site / "command.py"), str(out), *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=env)


def test_shared_stage_and_ranks_that_fail(tmp_path):
    done = launch(tmp_path)
    good, error, kill, bug = done.stdout.splitlines()
    assert good == "{'files': 6, 'work': 18}"
    names = [p.name.split(".") for p in (tmp_path / "out" / "good").iterdir()]
    assert sorted(item for item, _ in names) == list("012345") and {rank for _, rank in names} == {"0", "1"}
    assert error == "RangeError layer 4: NaN, want finite values."
    assert kill.startswith("SvdqError stage 'probe': killed (signal 9, often lack of memory), want it to finish.")
    assert bug.startswith("SvdqError rank 1: stage 'probe' failed with exit code 70: ZeroDivisionError")
    # The command ends with the last error: torchrun reports a failure, and the error is printed once.
    assert done.returncode != 0
    ours = [line for line in done.stderr.splitlines() if line.startswith("svdq-trt: ")]
    assert len(ours) == 1 and ours[0].startswith("svdq-trt: rank 1: stage 'probe' failed"), done.stderr


def test_bad_arguments_are_reported_once(tmp_path):
    done = launch(tmp_path, "--no-such-option")
    assert done.returncode != 0 and done.stderr.count("unrecognized arguments: --no-such-option") == 1, done.stderr


def test_shares_are_disjoint_complete_and_even():
    costs = [900, 30, 30, 500, 10, 420, 80, 60, 350]
    shares = []
    for rank in range(3):
        crew = object.__new__(Crew)
        crew.rank, crew.size = rank, 3
        shares.append(crew.share(costs))
    assert sorted(i for share in shares for i in share) == list(range(len(costs)))
    loads = [sum(costs[i] for i in share) for share in shares]
    assert max(loads) == 900 and min(loads) > 600
    assert Alone().share(costs) == list(range(len(costs)))
