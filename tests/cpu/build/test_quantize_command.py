"""svdq-trt quantize: killed, finished by two ranks, and the same bytes as from one undisturbed process."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from svdq_trt import cli
from svdq_trt.artifact import svdq_file
from tests.harness.builds import kill_on_the_way

MODEL = "pixart-tiny"
ARGS = [
    "-m",
    "svdq_trt.cli",
    "quantize",
    "--model",
    MODEL,
    "--arch",
    "sm_89",
    "--random-weights",
    "0",
    "--rank",
    "16",
    "--preset",
    "default",
    "--device",
    "cpu",
]
BUDGET = "400000"  # bytes: the model has 303,616 at rank 0
TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"]


def file_in(out: Path) -> Path:
    return out / f"{MODEL}-shared" / "int4-r16" / "svdq.safetensors"


def run(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *words], capture_output=True, text=True, timeout=300)


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    out = tmp_path_factory.mktemp("single")
    done = run(*ARGS, "--out", str(out))
    assert done.returncode == 0, done.stderr
    return out, done.stdout


def test_result_and_the_command_that_builds_from_it_are_reported(single):
    out, said = single
    assert svdq_file.load(file_in(out)).meta["device"] == "cpu"
    first, second = said.splitlines()
    assert first.startswith(f"{file_in(out)}: {MODEL} int4 rank 16, ") and first.endswith(" s on cpu")
    assert second == f"  svdq-trt build --model {MODEL} --arch sm_89 --quantized {file_in(out)}"


def test_second_run_reuses_it(single):
    out, _ = single
    before = file_in(out).stat().st_mtime_ns
    again = run(*ARGS, "--out", str(out))
    assert again.returncode == 0 and "reused" in again.stderr and file_in(out).stat().st_mtime_ns == before


def test_two_ranks_write_the_bytes_of_one_process(single, tmp_path):
    done = run(*TORCHRUN, *ARGS, "--out", str(tmp_path))
    assert done.returncode == 0 and done.stdout.count("svdq-trt build") == 1, done.stderr
    assert file_in(tmp_path).read_bytes() == file_in(single[0]).read_bytes()


def test_killed_run_is_finished_by_two_ranks(single, tmp_path):
    """Finished layers are reused: one of them is marked, and the mark survives."""
    partial = file_in(tmp_path).with_name("svdq.safetensors.partial")
    kill_on_the_way([sys.executable, *ARGS, "--out", str(tmp_path)], partial, 3)
    assert not file_in(tmp_path).exists()
    shard = sorted(partial.glob("*/*.safetensors"))[0]
    (node,) = svdq_file.load(shard).nodes
    marked = {name: t.clone() for name, t in load_file(shard).items()}
    marked[f"{node.name}.bias"] += 1
    svdq_file.save(shard, marked, {}, [node])

    done = run(*TORCHRUN, *ARGS, "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("svdq-trt build") == 1 and not partial.exists()
    want, got = (load_file(file_in(out)) for out in (single[0], tmp_path))
    assert torch.equal(got.pop(f"{node.name}.bias"), want[f"{node.name}.bias"] + 1)
    assert all(torch.equal(t, want[name]) for name, t in got.items()) and len(got) == len(want) - 1
    assert svdq_file.read_nodes(file_in(tmp_path)) == svdq_file.read_nodes(file_in(single[0]))


def test_ranks_of_their_own_are_chosen_once_for_all_ranks(tmp_path):
    """--rank auto: rank 0 chooses, both quantize by its file, and the bytes are those of one process."""
    words = [*ARGS, "--preset", "fast", "--rank", "auto", "--budget-bytes", BUDGET]
    alone, two = run(*words, "--out", str(tmp_path / "1")), run(*TORCHRUN, *words, "--out", str(tmp_path / "2"))
    assert alone.returncode == two.returncode == 0, alone.stderr + two.stderr
    first, second = (tmp_path / name / f"{MODEL}-shared" / "int4-rauto" for name in "12")
    for name in ("allocation.json", "svdq.safetensors"):
        assert (first / name).read_bytes() == (second / name).read_bytes(), name
    loaded = svdq_file.load(first / "svdq.safetensors")
    assert len({node.rank for node in loaded.nodes}) > 1 and loaded.meta["allocation"]["bytes"] <= int(BUDGET)
    assert f"{MODEL} int4 rank auto, " in two.stdout and "  --rank auto: " in two.stdout
    logs = sorted(p.name for p in (second.parent / "logs").iterdir())
    assert "int4-rauto.quantize.rank1.log" in logs and "int4-rauto.allocate.rank1.log" not in logs


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["--device", "tpu"], "--device: 'tpu', want one of auto, cpu, cuda"),
        (["--format", "nvfp4"], "nvfp4 for sm_89"),
        (["--rank", "auto"], "--rank auto: none or both of --budget-bytes and --target-sqnr"),
        (["--budget-bytes", "1MB"], "--budget-bytes: given with --rank 16"),
        pytest.param(
            ["--device", "cuda"],
            "--device: cuda with",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_bad_arguments_are_refused_before_any_work(tmp_path, capsys, words, text):
    assert cli.main([*ARGS[2:], *words, "--out", str(tmp_path / "out")]) == 2
    printed = capsys.readouterr().err
    assert text in printed and printed.count("\n") == 1 and not (tmp_path / "out").exists()
