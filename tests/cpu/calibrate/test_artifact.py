"""calib.safetensors: what was saved is loaded, anything else is refused in one line."""

import json

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from svdq_trt.artifact.calibration import Calibration
from svdq_trt.base.errors import ArtifactError
from svdq_trt.models import LinearGroup

GROUPS = (LinearGroup("a.to_qkv", ("a.to_q", "a.to_k", "a.to_v")), LinearGroup("b", ("b",)))


def sample(dtype=torch.float16):
    x = {"a.to_qkv": torch.randn(5, 64).to(dtype), "b": torch.randn(3, 128).to(dtype)}
    return Calibration({n: t.float().abs().amax(0) for n, t in x.items()}, x, {"model": "m", "samples": 2})


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_roundtrip_is_exact(tmp_path, dtype):
    want = sample(dtype)
    want.save(tmp_path / "calib.safetensors")
    got = Calibration.load(tmp_path / "calib.safetensors", [g.node for g in GROUPS])
    assert got.meta == want.meta and list(got.x) == list(want.x)
    for node in want.x:
        assert got.x[node].equal(want.x[node]) and got.amax[node].equal(want.amax[node])
    assert [p.name for p in tmp_path.iterdir()] == ["calib.safetensors"]


def test_file_for_other_layers_is_refused(tmp_path):
    sample().save(tmp_path / "c")
    with pytest.raises(ArtifactError, match=r"made for other layers \(b, 1 differ\)"):
        Calibration.load(tmp_path / "c", [g.node for g in GROUPS[:1]])


def test_truncated_file_is_refused(tmp_path):
    path = tmp_path / "c"
    sample().save(path)
    path.write_bytes(path.read_bytes()[:-7])
    with pytest.raises(ArtifactError, match="not readable"):
        Calibration.load(path)


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(ArtifactError, match="not readable"):
        Calibration.load(tmp_path / "none")


def note(**changes):
    return {"version": 1, "nodes": ["b"], "meta": {}} | changes


B = {"b.amax": torch.ones(64), "b.x": torch.ones(2, 64, dtype=torch.float16)}


@pytest.mark.parametrize(
    "metadata,tensors,text",
    [
        (None, B, "no calibration metadata"),
        ("{", B, "not readable"),
        ("[]", B, "no calibration metadata"),
        (json.dumps(note(version=2)), B, "calibration version 2, want 1"),
        (json.dumps(note(nodes="b")), B, "damaged metadata"),
        (json.dumps(note(meta=None)), B, "damaged metadata"),
        (json.dumps(note(nodes=["b", "c"])), B, "don't match its node list"),
        (json.dumps(note()), B | {"z": torch.ones(1)}, "don't match its node list"),
        (json.dumps(note()), B | {"b.amax": torch.ones(63)}, "want .K. and .T, K."),
        (json.dumps(note()), B | {"b.x": torch.ones(0, 64, dtype=torch.float16)}, "want .K. and .T, K."),
        (json.dumps(note()), B | {"b.x": torch.ones(2, 64)}, "want float32 and 16 bit"),
        (json.dumps(note()), B | {"b.amax": -torch.ones(64)}, "negative amax"),
        (json.dumps(note()), B | {"b.amax": torch.full((64,), float("inf"))}, "NaN or Inf"),
        (json.dumps(note()), B | {"b.x": torch.full((2, 64), float("nan")).half()}, "NaN or Inf"),
    ],
)
def test_malformed_file_is_refused(tmp_path, metadata, tensors, text):
    path = tmp_path / "c"
    save_file(tensors, path, metadata=None if metadata is None else {"svdq.calibration": metadata})
    with pytest.raises(ArtifactError, match=text) as caught:
        Calibration.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [OSError(28, "No space left on device"), SafetensorError("No space left (os error 28)")]
)
def test_full_disk_is_reported_and_leaves_nothing(tmp_path, monkeypatch, error):
    def full(*args, **kwargs):
        raise error

    monkeypatch.setattr("safetensors.torch.save_file", full)
    with pytest.raises(ArtifactError, match="disk full"):
        sample().save(tmp_path / "c")
    assert not list(tmp_path.iterdir())
