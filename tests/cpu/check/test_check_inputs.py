"""The check of a build: what it runs on, its figures over several inputs, and the gate."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from svdq_trt.artifact.manifest import to_json
from svdq_trt.base.errors import AccuracyError
from svdq_trt.build.run import Built, gate
from svdq_trt.contract.sqnr import MOST_DB
from svdq_trt.evaluate.check_inputs import COUNT, check_inputs
from svdq_trt.evaluate.metrics import compare
from svdq_trt.evaluate.onnx_run import run_onnx
from svdq_trt.models import get_model
from tests.harness.manifests import complete

SPEC = get_model("sdxl-tiny")
RANGES = {"batch": (1, 2), "height": (64, 128), "width": (64, 128), "tokens": (77, 77)}


def recorded(path: Path, samples: int, pixels: int = 64) -> Path:
    """Calibration inputs, of which sample i has timestep i."""
    inputs = SPEC.example_inputs(samples, pixels, pixels, dtype=torch.float32, tokens=77)
    tensors = {io.name: t.contiguous() for io, t in zip(SPEC.inputs, inputs, strict=True)}
    tensors["timestep"] = torch.arange(samples).float()
    save_file(tensors, path)
    return path


def test_of_inputs_of_several_sizes_the_most_of_one_size_are_taken(tmp_path):
    """Those of a size that the engine doesn't take count for nothing."""
    parts = []
    for samples, pixels in ((2, 64), (3, 128), (5, 256)):
        with safe_open(recorded(tmp_path / "one.safetensors", samples, pixels), framework="pt") as file:
            parts.append({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 - not a dict
    save_file({f"{i}.{name}": t for i, part in enumerate(parts) for name, t in part.items()}, tmp_path / "all")
    found = check_inputs(SPEC, RANGES, 7, tmp_path / "all")
    assert found.recorded and len(found.feeds) == 3 and (found.sizes["height"], found.sizes["batch"]) == (128, 1)


def test_synthetic_inputs_are_of_several_seeds_and_steps():
    found = check_inputs(SPEC, RANGES, 7, None)
    assert len(found.feeds) == COUNT >= 4 and not found.recorded and not found.note
    assert found.sizes == {symbol: low for symbol, (low, _) in RANGES.items()}
    steps = [float(feed["timestep"][0]) for feed in found.feeds]
    assert steps == sorted(steps, reverse=True) and steps[0] > 800 and steps[-1] < 200
    text = {feed["encoder_hidden_states"].numpy().tobytes() for feed in found.feeds}
    assert len(text) == COUNT
    assert all(feed[io.name].dtype == io.torch_dtype(SPEC.torch_dtype) for feed in found.feeds for io in SPEC.inputs)
    again = check_inputs(SPEC, RANGES, 7, None)  # the reference's run has the same
    assert all(torch.equal(a[n], b[n]) for a, b in zip(found.feeds, again.feeds, strict=True) for n in a)


@pytest.mark.parametrize(("samples", "batch", "want"), [(8, 1, [1, 3, 5, 7]), (2, 1, [0, 1]), (3, 2, [0, 1, 2])])
def test_recorded_inputs_are_used_evenly(tmp_path, samples, batch, want):
    ranges = RANGES | {"batch": (batch, 4)}
    found = check_inputs(SPEC, ranges, 7, recorded(tmp_path / "calib.safetensors", samples))
    assert found.recorded and found.sizes["batch"] == batch and found.sizes["height"] == 64
    assert sorted({int(feed["timestep"][0]) for feed in found.feeds}) == want
    assert all(len(feed["sample"]) == batch and feed["sample"].dtype == torch.float16 for feed in found.feeds)


def test_recorded_inputs_that_the_engine_does_not_take_are_said_to_be_left_out(tmp_path):
    found = check_inputs(SPEC, RANGES, 7, recorded(tmp_path / "calib.safetensors", 2, pixels=256))
    assert not found.recorded and found.sizes["height"] == 64
    assert "synthetic" in found.note and "calib.safetensors have height 256" in found.note


def outputs(path: Path, values: list[float]) -> Path:
    """One output of as many inputs, each [1, 4] of its value."""
    np.savez(path, y=np.array(values, np.float32)[:, None, None].repeat(4, 2))
    return path


def test_figures_are_of_all_inputs_together_and_of_each(tmp_path):
    ref, got = outputs(tmp_path / "r.npz", [1.0, 1.0]), outputs(tmp_path / "g.npz", [1.1, 1.01])
    (figures,) = compare(ref, got)
    assert figures.each_db == pytest.approx((20, 40), abs=1e-3)
    assert figures.sqnr_db == pytest.approx(10 * np.log10(2 / (0.1**2 + 0.01**2)), abs=1e-3)
    assert figures.spread == "2 inputs, 20.0 to 40.0 dB"


def test_equal_outputs_have_a_figure_that_a_manifest_can_hold(tmp_path):
    """A ControlNet's first output depends on no quantized layer."""
    (figures,) = compare(outputs(tmp_path / "r.npz", [1.0, 2.0]), outputs(tmp_path / "g.npz", [1.0, 2.0]))
    assert figures.sqnr_db == MOST_DB and figures.each_db == (MOST_DB, MOST_DB)


def test_one_session_runs_all_inputs(tmp_path):
    text = '<ir_version: 10, opset_import: ["": 23]> g (float[n] x) => (float[n] y) { y = Add(x, x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "m.onnx")
    feeds = [{"x": np.full(3, i, np.float32)} for i in range(3)]
    assert run_onnx(tmp_path / "m.onnx", feeds, tmp_path / "o.npz") > 0
    with np.load(tmp_path / "o.npz") as file:
        assert file["y"].tolist() == [[0.0] * 3, [2.0] * 3, [4.0] * 3]


def test_gate_judges_all_inputs_and_states_the_spread(tmp_path):
    ref, got = outputs(tmp_path / "r.npz", [1.0, 1.0]), outputs(tmp_path / "g.npz", [1.1, 1.01])
    accuracy = {
        "against": "16 bit",
        "sizes": {},
        "seed": 1,
        "mean_layer_sqnr_db": None,
        "outputs": [to_json(one) for one in compare(ref, got)],
        "plot": "p",
        "inputs": 2,
    }
    built = Built(SimpleNamespace(folder=Path("engine")), complete(accuracy=accuracy), None)
    gate([built], 22.9)
    with pytest.raises(
        AccuracyError, match=r"engine: y: SQNR 22\.97 dB \(2 inputs, 20\.0 to 40\.0 dB\), want at least"
    ):
        gate([built], 23.1)
