"""A model whose weights are read layer by layer gives the same artifact as the resident one."""

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from svdq_trt.artifact.calibration import Calibration
from svdq_trt.artifact.tensor_file import SAFETENSORS_DTYPES, stream_tensors
from svdq_trt.build import model_source
from svdq_trt.build.stages.calibrate import Calibrate
from svdq_trt.build.stages.quantize import Quantize
from svdq_trt.build.stages.weights import Weights
from svdq_trt.calibrate import collect
from svdq_trt.checkpoint import load, open_weights
from svdq_trt.models import TWINS, get_model
from svdq_trt.models.language_model import LanguageModel
from tests.harness.language_models import WIDE
from tests.harness.part_graphs import part


def stage(name, out) -> Quantize:
    weights = Weights(name, "digest", random_weights=0)
    calibrate = Calibrate(weights, None, (), "cpu", out=out / "calib.safetensors")
    return Quantize(calibrate, "int4", 16, None, "fast", out=out / "svdq.safetensors")


QWEN = part("Qwen3Model", WIDE, dtype="bfloat16")
DESCRIBED = LanguageModel("qwen", replace(QWEN, states=(2,))).to_text()


@pytest.mark.parametrize("name", ["flux1-tiny", "pixart-tiny", "t5-tiny", pytest.param(DESCRIBED, id="qwen3")])
def test_streamed_artifact_is_the_resident_one(name, tmp_path, monkeypatch):
    resident, streamed = tmp_path / "resident", tmp_path / "streamed"
    monkeypatch.setattr(model_source, "_STREAM_BYTES", 1 << 60)
    want = stage(name, resident).run(lambda *_: None)
    monkeypatch.setattr(model_source, "_STREAM_BYTES", 0)
    monkeypatch.setattr(model_source, "load", lambda *_: pytest.fail("the whole model was loaded"))
    streamed.mkdir()
    for file in ("calib.safetensors", ".calibrate.json"):  # the same calibration: then the bits must be the same
        (streamed / file).write_bytes((resident / file).read_bytes())
    monkeypatch.setattr("svdq_trt.build.freshness.lookup", lambda *_: {})
    got = stage(name, streamed).run(lambda *_: None)
    assert replace(got, seconds={}) == replace(want, seconds={})
    a, b = (load_file(folder / "svdq.safetensors") for folder in (resident, streamed))
    assert a.keys() == b.keys() and all(t.equal(b[n]) for n, t in a.items())
    metas = []
    for folder in (resident, streamed):
        with safe_open(folder / "svdq.safetensors", framework="np") as file:
            metas.append(json.loads(file.metadata()["svdq"]))
    assert metas[0] == metas[1]


@pytest.mark.parametrize("name", TWINS)
def test_calibration_of_several_samples_at_once_is_that_of_one_at_a_time(name):
    spec = get_model(name)
    one = collect(load(spec, random_seed=0), spec, samples=4, height=64, width=64, tokens_per_group=64)
    read = open_weights(spec, random_seed=0).read
    many = collect(spec.build(), spec, samples=4, height=64, width=64, tokens_per_group=64, read=read)
    assert isinstance(many, Calibration) and one.amax.keys() == many.amax.keys()
    for node, amax in one.amax.items():
        torch.testing.assert_close(many.amax[node], amax, rtol=1e-3, atol=1e-4)
        assert many.x[node].shape == one.x[node].shape, node


def test_streamed_file_is_read_by_safetensors(tmp_path):
    tensors = {
        "b": torch.randn(3, 5),
        "a": torch.randint(-128, 127, (7,), dtype=torch.int8),
        "empty": torch.empty(0, 4),
        "h": torch.randn(1, 3).half(),
        "scalar": torch.tensor(2.5),
        "bf": torch.randn(5).bfloat16(),
    }
    shapes = {n: (SAFETENSORS_DTYPES[str(t.dtype)], tuple(t.shape)) for n, t in tensors.items()}
    stream_tensors(tmp_path / "ours", shapes, tensors.__getitem__, {"k": "v"})
    save_file(tensors, tmp_path / "theirs", metadata={"k": "v"})
    ours, theirs = load_file(tmp_path / "ours"), load_file(tmp_path / "theirs")
    assert ours.keys() == theirs.keys() and all(t.equal(ours[n]) for n, t in theirs.items())
    with safe_open(tmp_path / "ours", framework="np") as file:
        assert file.metadata() == {"k": "v"}


def test_failed_stream_leaves_no_file(tmp_path):
    def read(name):
        if name == "b":
            raise RuntimeError("no such layer")
        return torch.zeros(2)

    with pytest.raises(RuntimeError, match="no such layer"):
        stream_tensors(tmp_path / "x", {"a": ("F32", (2,)), "b": ("F32", (2,))}, read, {})
    assert not list(tmp_path.iterdir())
