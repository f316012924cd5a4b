"""`--step-cache` through the whole path: plans of the pieces, their weights, reuse, finishing, and running them."""

from __future__ import annotations

import json

import onnx_ir as ir
import torch

from svdq_trt.contract.step_cache import PIECES
from svdq_trt.models import get_model
from svdq_trt.runtime import OnnxSession
from tests.harness.builds import FIXED, build, plugin_nodes, svdq

MODEL = "flux1-tiny"
#: with inputs that only later pieces read: a ControlNet's residuals, LoRAs of all layers
CONTROLLED = f"{MODEL}-with-controlnet"
WORDS = (*FIXED, "--arch", "sm_89", "--no-check", "--step-cache", "--lora-slots", "16")


def test_an_engine_in_pieces(tmp_path):
    done = build(CONTROLLED, tmp_path, *WORDS)
    assert done.returncode == 0, done.stdout + done.stderr
    folder = tmp_path / f"{CONTROLLED}-sm_89"
    m = json.loads((folder / "manifest.json").read_text())
    assert [p["file"] for p in m["plan"]["pieces"]] == [f"{piece}.plan" for piece in PIECES]
    assert m["plan"]["bytes"] == sum((folder / f"{piece}.plan").stat().st_size for piece in PIECES)
    assert [p["file"] for p in m["onnx"]["pieces"]] == [f"{piece}.onnx" for piece in PIECES]
    assert plugin_nodes(m) == sorted({q["node"] for q in m["quantized"]})
    assert not (folder / "model.plan").exists()
    assert_nodes_once(folder)
    assert_runs_as_a_whole(folder)
    again = build(CONTROLLED, tmp_path, *WORDS)
    assert again.returncode == 0 and " done " not in again.stderr, again.stderr
    assert svdq("verify", str(folder)).returncode == 0
    unserved = svdq("triton", str(folder), "--repository", str(tmp_path / "models"))
    assert unserved.returncode == 1 and "an engine with a step cache" in unserved.stderr, unserved.stderr
    assert_finished(folder)
    with (folder / "tail.plan").open("r+b") as file:
        file.write(b"damaged")
    assert "tail.plan: another SHA-256" in svdq("verify", str(folder)).stderr


def assert_nodes_once(folder):
    """Each svdq node is in one piece, with its weights."""
    whole, pieces = (nodes(folder, names) for names in (["model"], PIECES))
    assert sorted(pieces) == sorted(whole)


def nodes(folder, names):
    graphs = [ir.load(folder / f"{name}.onnx").graph for name in names]
    return [node.name for graph in graphs for node in graph if node.domain == "svdq"]


def assert_runs_as_a_whole(folder):
    spec = get_model(CONTROLLED)
    sizes = {"batch": 1, "height": 64, "width": 64}
    feed = {io.name: v for io, v in zip(spec.inputs, spec.example_inputs(**sizes, seed=3), strict=True)}
    with OnnxSession(folder) as session:
        session.step_cache = 0.1
        (first,), (second,) = (session.run(feed).values() for _ in range(2))
        assert session.skipped == 1 and torch.allclose(first.float(), second.float(), atol=0.05)
        session.set_lora(None)
        session.run(feed)
        assert session.skipped == 1  # other weights: forgotten


def assert_finished(folder):
    """Without plans the folder is complete again by `svdq-trt finish`."""
    m = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(m | {"plan": {}, "backend": {}}))
    for piece in PIECES:
        (folder / f"{piece}.plan").unlink()
    assert svdq("verify", str(folder)).returncode != 0
    done = svdq("finish", str(folder))
    assert done.returncode == 0, done.stderr
    assert svdq("verify", str(folder)).returncode == 0


def test_what_has_no_step_cache_is_refused_before_any_work(tmp_path):
    for model, words, said in (
        ("sdxl-tiny", (), "which has fewer than two transformer blocks in a row"),
        (MODEL, ("--weight-streaming",), "--step-cache: given with --weight-streaming"),
    ):
        done = build(model, tmp_path / model, "--arch", "sm_89", "--step-cache", *words)
        assert done.returncode == 2 and said in done.stderr, done.stderr
        assert not (tmp_path / model).exists()
