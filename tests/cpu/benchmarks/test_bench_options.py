"""The kernels' benchmarks have one set of options, one refusal and one form of results."""

import importlib
import json
import sys

import bench_options
import kernel_calls
import pytest
import torch

SCRIPTS = ("bench_linear", "bench_mlp", "bench_gemv")


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


@pytest.mark.parametrize("script", SCRIPTS)
def test_missing_kernels_are_reported(script, monkeypatch, capsys):
    monkeypatch.setattr(kernel_calls, "find_library", lambda: None)
    assert run(script, monkeypatch) == 2
    assert "no libsvdq.so found: build it, or pass --library" in capsys.readouterr().err


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
