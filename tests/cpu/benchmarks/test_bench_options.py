"""The kernels' benchmarks have one set of options, one refusal and one form of results."""

import importlib
import json
import re
import runpy
import subprocess
import sys
from pathlib import Path

import bench_options
import kernel_calls
import pytest
import torch

from svdq_trt.base.errors import EXIT_USAGE

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"
SCRIPTS = ("bench_linear", "bench_mlp", "bench_gemv")
FILES = [*sorted(BENCHMARKS.glob("*.py")), *sorted(BENCHMARKS.glob("micro/*.py"))]


def run(script, monkeypatch, *words):
    """Run the command line; returns the exit code."""
    monkeypatch.setattr(sys, "argv", [script, *words])
    with pytest.raises(SystemExit) as ended:
        importlib.import_module(script).main()
    return ended.value.code


@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_share_their_options(script, monkeypatch, capsys):
    assert run(script, monkeypatch, "--help") == 0
    printed = capsys.readouterr().out
    assert all(f"--{name} " in printed for name in ("library", "rank", "only", "seconds", "warm", "out"))


@pytest.mark.parametrize("path", [p for p in FILES if "__main__" in p.read_text()], ids=lambda p: p.stem)
def test_every_script_says_how_it_is_called(path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", [path.name, "--help"])
    monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(path), run_name="__main__")
    assert ended.value.code == 0
    assert capsys.readouterr().out.startswith(f"usage: {path.name} ")


def test_time_kernels_takes_four_numbers_of_each_linear(monkeypatch, capsys):
    assert run("time_kernels", monkeypatch, "64", "64", "64", "32", "128") == 2
    assert "5 numbers, want four for each linear" in capsys.readouterr().err


@pytest.mark.parametrize("script", SCRIPTS)
def test_missing_kernels_are_reported(script, monkeypatch, capsys):
    monkeypatch.setattr(kernel_calls, "find_library", lambda: None)
    assert run(script, monkeypatch) == 2
    assert "no libsvdq.so found: build it, or pass --library" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--formats", "fp16,int5"), "--formats: 'int5', want one of fp16, diffusers, "),
        (("--rivals", "eager"), "--rivals: 'eager', want one of compile, compile-fp8"),
        (("--model", "sdxl-huge"), "sdxl-huge"),
    ],
)
def test_what_bench_engine_does_not_know_is_refused_before_work(words, said, tmp_path):
    command = [sys.executable, str(BENCHMARKS / "bench_engine.py"), "--stage", "make", "--target", "89", *words]
    work = tmp_path / "work"
    done = subprocess.run([*command, "--work", str(work)], capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_USAGE and not work.exists()
    (line,) = done.stderr.splitlines()
    assert said in line


GPU_SCRIPTS = (*SCRIPTS, "time_kernels", "bench_lora_swap", "bench_engine", "rotary_forms", "bench_step_cache")


@pytest.mark.parametrize("script", GPU_SCRIPTS)
def test_a_machine_without_a_gpu_is_one_line(script, monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(kernel_calls, "find_library", lambda: tmp_path / "libsvdq.so")
    words = {"time_kernels": ("64", "64", "64", "32"), "bench_step_cache": ("engine",)}.get(script, ())
    line = run(script, monkeypatch, *words)
    assert line.startswith(f"torch {torch.__version__}: sees no CUDA GPU, want one to measure on.")
    assert len(line.splitlines()) == 1


def test_what_needs_a_gpu_says_so():
    """A script that asks torch for the GPU asks first whether there is one."""
    for path in FILES:
        text = path.read_text()
        if "__main__" in text and re.search(r'get_device_name\(\)|device="cuda"|local_arch', text):
            assert re.search(r"need_gpu\(|options\.parse\(", text), path


@pytest.mark.parametrize("name", ["w4a8_h200", "w4a8_h200_rank128", "gemv_h200"])
def test_results_have_the_columns_that_the_scripts_write(name):
    saved = json.loads((BENCHMARKS / "results" / f"{name}.json").read_text())
    for row in saved["rows"]:
        assert set(row["us"]) <= {"bf16", "fp8", "nf4", "quantize", "gemm", "total", "rank0"}
    if "gemv" not in name:
        assert "geomean" in importlib.import_module("bench_linear").report(saved["rows"], 1e12)


def test_results_name_machine_and_settings(monkeypatch, tmp_path):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "a GPU")
    parser = bench_options.make_parser("Doc.", "names", seconds=1, warm=2)
    bench_options.save(parser.parse_args([]), ("rank",), [{}])  # nothing is asked for, nothing written
    args = parser.parse_args(["--out", str(tmp_path / "out.json"), "--rank", "16"])
    bench_options.save(args, ("rank", "warm"), [{"us": 1}], copy_bytes_per_s=3.0)
    assert json.loads((tmp_path / "out.json").read_text()) == {
        "machine": {"gpu": "a GPU", "torch": torch.__version__, "copy_bytes_per_s": 3.0},
        "rank": 16,
        "warm": 2,
        "rows": [{"us": 1}],
    }
