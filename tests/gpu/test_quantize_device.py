"""The quantizer on a GPU: as good as on the CPU, the same bits every time, whatever the number of workers."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from svdq_trt.artifact.svdq_file import read_nodes
from svdq_trt.build import model_source
from svdq_trt.build.stages.allocate import Allocate
from svdq_trt.build.stages.calibrate import Calibrate
from svdq_trt.build.stages.quantize import Quantize
from svdq_trt.build.stages.weights import Weights
from svdq_trt.contract.formats import INT4, NVFP4, Format
from svdq_trt.contract.sqnr import decibels
from svdq_trt.quantize import gptq, workers
from svdq_trt.quantize.lowrank import cholesky_basis

CLOSE_DB = 0.3  # of a layer on average; single layers differ more, as rungs are chosen by tokens held out


def calibrate(out: Path, model: str, device: str) -> Calibrate:
    """Calibrate a model with random weights on synthetic inputs."""
    out.mkdir(parents=True)
    weights = Weights(model, "digest", random_weights=0)
    return Calibrate(weights, None, (), device, force=True, out=out / "calib.safetensors")


def quantize(out: Path, model: str, fmt: str, device: str, preset: str = "default") -> Path:
    stage = Quantize(calibrate(out, model, device), fmt, 32, None, preset, out=out / "svdq.safetensors")
    stage.run(lambda *_: None)
    return stage.out


def curves(out: Path, device: str) -> dict[str, list[float]]:
    """The curves of stage Allocate: node -> relative error at each rank."""
    stage = Allocate(calibrate(out, "flux1-tiny", device), "int4", 3_000_000, None, None, out=out / "allocation.json")
    stage.run(lambda *_: None)
    entries = [json.loads(line) for line in stage.curves.read_text().splitlines()[1:]]
    return {entry["name"]: entry["value"]["errors"] for entry in entries}


@pytest.mark.parametrize(("model", "fmt"), [("sdxl-tiny", "nvfp4"), ("flux1-tiny", "int4"), ("flux1-tiny", "w4a8")])
def test_gpu_is_as_good_as_the_cpu_and_repeats(model: str, fmt: str, tmp_path: Path, monkeypatch: Any) -> None:
    cpu, gpu = (quantize(tmp_path / device, model, fmt, device) for device in ("cpu", "cuda"))
    a, b = read_nodes(cpu), read_nodes(gpu)
    assert [n.name for n in a] == [n.name for n in b]
    differ = [y.sqnr_db - x.sqnr_db for x, y in zip(a, b, strict=True)]
    assert abs(sum(differ)) / len(differ) < CLOSE_DB and min(differ) > -3, differ
    monkeypatch.setattr(workers, "gpu_workers", lambda free, ranks: 1)
    monkeypatch.setattr(model_source, "_STREAM_BYTES", 1 << 60)
    alone = quantize(tmp_path / "alone", model, fmt, "cuda")
    assert alone.read_bytes() == gpu.read_bytes()


def test_curves_on_the_gpu_are_those_of_the_cpu_and_repeat(tmp_path: Path, monkeypatch: Any) -> None:
    cpu, gpu = (curves(tmp_path / device, device) for device in ("cpu", "cuda"))
    assert cpu.keys() == gpu.keys()
    differ = [abs(decibels(a) - decibels(b)) for n in cpu for a, b in zip(cpu[n], gpu[n], strict=True)]
    assert sum(differ) / len(differ) < CLOSE_DB and max(differ) < 3, max(differ)
    monkeypatch.setattr(workers, "gpu_workers", lambda free, ranks: 1)
    monkeypatch.setattr(model_source, "_STREAM_BYTES", 1 << 60)
    assert curves(tmp_path / "alone", "cuda") == gpu
    first, again = (tmp_path / name / "allocation.json" for name in ("cuda", "alone"))
    assert first.read_bytes() == again.read_bytes()


def test_streamed_model_gives_the_same_bits(tmp_path: Path, monkeypatch: Any) -> None:
    """The batches of samples are the same, which calibration makes larger where it reads weights."""
    collect = importlib.import_module("svdq_trt.calibrate.collect")  # the package has a function of that name
    monkeypatch.setattr(collect, "_STREAM_BATCH", 1)
    resident = quantize(tmp_path / "resident", "flux1-tiny", "int4", "cuda", "fast")
    monkeypatch.setattr(model_source, "_STREAM_BYTES", 0)
    streamed = quantize(tmp_path / "streamed", "flux1-tiny", "int4", "cuda", "fast")
    assert streamed.read_bytes() == resident.read_bytes()


@pytest.mark.parametrize("columns", [64, 128])
@pytest.mark.parametrize("fmt", [INT4, NVFP4], ids=lambda f: f.name)
def test_block_kernel_rounds_as_the_loop(fmt: Format, columns: int) -> None:
    triton = pytest.importorskip("svdq_trt.quantize.gptq_triton")
    g, n = torch.Generator().manual_seed(columns), 1000
    todo = torch.randn(columns, n, generator=g)
    wanted = todo + 0.1 * torch.randn(columns, n, generator=g)
    feedback = 0.1 * torch.randn(columns, columns + 3, generator=g)  # what is not right of the diagonal must not count
    steps = torch.rand(columns, n, generator=g) * 0.3 + 0.05
    steps[:, 3] = 0 if fmt is NVFP4 else 1
    values, wrong, want_values, want_wrong = (torch.empty(columns, n, device="cuda") for _ in range(4))
    operands = [t.cuda() for t in (todo, wanted, feedback, steps)]
    assert gptq.rounding_on(operands[0].device) == (triton.round_block, "")
    triton.round_block(*operands, fmt, values, wrong)
    gptq._round_block(*operands, fmt, want_values, want_wrong)
    same = values == want_values
    assert same[-8:].float().mean() > 0.9999  # few sums behind them
    assert same.float().mean() > 0.99  # a tie that is rounded the other way changes the columns after it
    torch.testing.assert_close(wrong[same], want_wrong[same], rtol=1e-5, atol=1e-5)
    assert float(wrong.square().sum()) == pytest.approx(float(want_wrong.square().sum()), rel=1e-2)


def test_cholesky_basis_on_the_gpu() -> None:
    a = torch.randn(4096, 40, device="cuda", generator=torch.Generator("cuda").manual_seed(0))
    a[:, 0] *= 1000
    for columns in (a, a[:, [0, *range(39)]]):  # the second has two that are equal
        q = cholesky_basis(columns)
        torch.testing.assert_close(q.T @ q, torch.eye(40, device="cuda"), rtol=0, atol=1e-5)
