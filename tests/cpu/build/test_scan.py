"""svdq-trt sensitivity: its files, resuming after a kill, its refusals."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from types import SimpleNamespace

import pytest
import torch

from svdq_trt import cli
from svdq_trt.artifact import svdq_file
from svdq_trt.artifact.calibration import Calibration
from svdq_trt.artifact.sensitivity import Sensitivity
from svdq_trt.build import scan
from svdq_trt.build.console import Console
from svdq_trt.build.execute import Execution
from svdq_trt.build.folder import only_writer
from svdq_trt.build.process import Done, StageRunner
from svdq_trt.build.stages.calibrate import Calibrate
from svdq_trt.build.stages.quantize import Quantize, Quantized
from svdq_trt.build.stages.weights import Weights
from svdq_trt.build.ui import Screen
from svdq_trt.models import LinearGroup

ARGS = [
    "sensitivity",
    "--model",
    "flux1-tiny",
    "--random-weights",
    "0",
    "--format",
    "w4a8",
    "--rank",
    "16",
    "--preset",
    "fast",
    "--pixels",
    "64",
    "--samples",
    "1",
]

WEIGHTS = Weights("flux1-tiny", "digest", random_weights=0)


def lines(path) -> int:
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def test_killed_scan_goes_on_where_it_stopped(tmp_path, capsys):
    out = tmp_path / "scan.json"
    done = tmp_path / "scan.json.partial" / "effects.jsonl"
    command = [sys.executable, "-m", "svdq_trt.cli", *ARGS, "--out", str(out)]
    child = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while lines(done) < 4 and child.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    assert lines(done) >= 4 and not out.exists()
    marked = done.read_bytes().splitlines(keepends=True)[:3]
    marked[1] = json.dumps({**json.loads(marked[1]), "value": 77.25}).encode() + b"\n"  # to be recognized later
    done.write_bytes(b"".join(marked))
    quantized = (tmp_path / "scan.json.partial" / "svdq.safetensors").stat().st_mtime_ns
    assert quantized and cli.main([*ARGS, "--out", str(out), "--top", "3"]) == 0
    found = Sensitivity.load(out)
    assert found.effects[0].output_db == 77.25 and len(found.effects) == 31
    assert (found.model, found.format, found.rank) == ("flux1-tiny", "w4a8", 16)
    assert found.inputs == "1 synthetic of 64 pixels"
    assert out.with_suffix(".png").read_bytes().startswith(b"\x89PNG") and not done.parent.exists()
    printed = capsys.readouterr().out
    worst = sorted(found.effects, key=lambda e: e.output_db)
    assert all(e.node in printed for e in worst[:3]) and worst[4].node not in printed
    assert f"{found.predicted_db:.1f} dB predicted" in printed and f"{found.measured_db:.1f} dB measured" in printed


def damage(file):
    """Other contents with the same size and time."""
    stat = file.stat()
    file.write_bytes(b"\xff" * stat.st_size)
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize(
    "harm", [damage, lambda file: file.write_bytes(file.read_bytes()[:-40])], ids=["other contents", "shorter"]
)
def test_damaged_quantized_model_is_made_again(tmp_path, harm):
    made, out = [], io.StringIO()
    stage = Quantize(
        Calibrate(WEIGHTS, None, (), "cpu", out=tmp_path / "c"), "int4", 16, None, "fast", out=tmp_path / "q"
    )

    class Runner(StageRunner):
        def run(self, stage, log, progress):
            made.append(stage.key)
            svdq_file.save(stage.out, {"x": torch.zeros(64)}, {}, [])
            return Done(Quantized(1, 1, (), None, 0, 16, notes=("slow",)), 1.0, 1)

    def size():
        execution = Execution(Screen(Console(file=out, width=200)), Runner(), tmp_path)
        return len(scan._quantized(stage, execution).tensors["x"])

    assert size() == size() == 64 and made == [stage.key]
    done, first, reused, second = (line.split() for line in out.getvalue().splitlines())
    assert "done" in done and "reused" in reused and first == second == ["slow"]
    harm(stage.out)
    assert size() == size() == 64 and made == [stage.key] * 2


def test_damaged_calibration_is_made_again(tmp_path, monkeypatch):
    made = []
    step = Calibrate(WEIGHTS, None, (), "cpu", out=tmp_path / "calib.safetensors")

    def collect(*_, **__):
        made.append(1)
        return Calibration({"n": torch.ones(64)}, {"n": torch.ones(4, 64).half()}, {})

    def rows():
        recipe = SimpleNamespace(groups=(LinearGroup("n", ("n",)),))
        model = SimpleNamespace(recipe=recipe, module=None, spec=None, read=None)
        return len(step.calibration(model, torch.device("cpu"), lambda *_: None).x["n"])

    monkeypatch.setattr("svdq_trt.calibrate.collect", collect)
    assert rows() == rows() == 4 and len(made) == 1
    damage(step.out)
    assert rows() == rows() == 4 and len(made) == 2


def test_second_scan_into_one_file_is_refused(tmp_path, capsys):
    with only_writer(tmp_path / "scan.json.partial"):
        assert cli.main([*ARGS, "--out", str(tmp_path / "scan.json")]) == 1
    printed = capsys.readouterr().err
    assert "scan.json.partial: another svdq-trt is writing there, want one at a time. Wait for it" in printed


def no_room_on_the_gpu(*_):
    raise torch.cuda.OutOfMemoryError("CUDA out of memory.")


@pytest.mark.parametrize(
    ("step", "text"),
    [
        (lambda *_: torch.empty(10**15), "out of memory, want more RAM. Close other programs."),
        (no_room_on_the_gpu, "out of GPU memory"),
    ],
)
def test_lack_of_memory_is_reported_as_such(tmp_path, capsys, monkeypatch, step, text):
    monkeypatch.setattr(scan, "_quantized", step)
    assert cli.main([*ARGS, "--out", str(tmp_path / "scan.json")]) == 1
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"svdq-trt: sensitivity: {text}")


@pytest.mark.parametrize(
    ("more", "code", "text"),
    [
        (["--format", "int3"], 2, "--format: 'int3'"),
        (["--rank", "20"], 2, "--rank: 20, want a multiple of 16"),
        (["--device", "tpu"], 2, "--device: 'tpu', want one of auto, cpu, cuda"),
        (["--samples", "0"], 2, "--samples: 0, want 1 or more"),
        (["--model", "nope"], 2, "--model: 'nope'"),
        (["--top", "-1"], 2, "--top: -1"),
        (["--out", "x.png"], 2, "--out: 'x.png'"),
        (["--pixels", "100"], 1, "height: 100, want a positive multiple"),
        (["--calibration", "/no/f"], 2, "--pixels: given with --calibration"),
        (["--skip", "nope*"], 2, "--skip: 'nope*' matches no quantized layer"),
    ],
)
def test_bad_arguments_are_one_line_and_an_exit_code(more, code, text, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*ARGS, *more]) == code
    assert text in capsys.readouterr().err
