"""The smoothing trials in the artifact's header: there and back, absent from older files, refused when damaged."""

from __future__ import annotations

import json

import pytest
import torch

from svdq_trt.artifact import svdq_file
from svdq_trt.artifact.tensor_file import save_tensors
from svdq_trt.base.errors import ArtifactError
from svdq_trt.contract.formats import FORMATS
from svdq_trt.models import LinearGroup
from svdq_trt.quantize.layer import quantize_group
from svdq_trt.quantize.run import _resume


@pytest.fixture(scope="module")
def made():
    g = torch.Generator().manual_seed(0)
    w, x = torch.randn(64, 128, generator=g), torch.randn(96, 128, generator=g)
    q = quantize_group([w], [None], x, FORMATS["int4"], 16, name="a")
    q.trials.append((1.0, 0.0, float("inf")))  # one that overflowed
    return q.node(("a",), (64,)), q.weights.named("a"), q


def test_trials_come_back_in_decibels_without_those_that_overflowed(made, tmp_path):
    node, tensors, q = made
    svdq_file.save(tmp_path / "s", tensors, {}, [node])
    (got,) = svdq_file.read_nodes(tmp_path / "s")
    assert got == node and len(got.trials) == len(q.trials) - 1
    best = max(got.trials, key=lambda trial: trial[2])
    assert min(q.trials, key=lambda trial: trial[2])[:2] == pytest.approx(best[:2], abs=1e-4)


def test_finished_layer_is_taken_over_only_as_what_it_is(made, tmp_path):
    node, tensors, _ = made
    shard, a = tmp_path / "0000", LinearGroup("a", ("a",))
    assert _resume(shard, a) is None
    svdq_file.save(shard, tensors, {}, [node])
    assert _resume(shard, a)[0] == node and _resume(shard, LinearGroup("b", ("b",))) is None
    svdq_file.save(shard, tensors, {}, [])
    assert _resume(shard, a) is None
    shard.write_bytes(b"torn")
    assert _resume(shard, a) is None


@pytest.mark.parametrize("trials", [3, [[1, 2]], ["abc"], [["a", 0, 1]], [[0, 0, None]], {"a": 1}])
def test_damaged_trials_are_refused(made, tmp_path, trials):
    node, tensors, _ = made
    svdq_file.save(tmp_path / "s", tensors, {}, [node])
    header = {"version": svdq_file.VERSION, "nodes": [json.loads(json.dumps(node.__dict__)) | {"trials": trials}]}
    save_tensors(tmp_path / "s", tensors, {"svdq": json.dumps(header)})
    with pytest.raises(ArtifactError, match="no usable header"):
        svdq_file.load(tmp_path / "s")


def test_file_without_trials_is_read(made, tmp_path):
    node, tensors, _ = made
    fields = {name: value for name, value in node.__dict__.items() if name != "trials"}
    save_tensors(tmp_path / "s", tensors, {"svdq": json.dumps({"version": svdq_file.VERSION, "nodes": [fields]})})
    assert svdq_file.load(tmp_path / "s").nodes[0].trials == ()
