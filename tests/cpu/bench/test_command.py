"""``svdq-trt bench`` from words to files, on a clock that is none; mistakes are one line and open nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from svdq_trt.artifact.manifest import TensorProfile
from svdq_trt.bench import run as module
from svdq_trt.cli import main
from svdq_trt.engine.gpu import local_arch
from svdq_trt.models import get_model
from tests.harness.manifests import change_manifest, write_manifest
from tests.harness.stopped_clock import StoppedClock, StoppedSession

PLUGIN, OWN = 3.0, 4.0  # ms of the engines


@pytest.fixture
def engines(tmp_path):
    """Two folders of one quantized model: the plugin's attention, and TensorRT's."""
    for name, attention in (("plugin", "plugin"), ("own", "tensorrt")):
        (tmp_path / name).mkdir()
        write_manifest(tmp_path / name, attention=attention, config={"batch": {"min": 1, "opt": 3, "max": 4}})
    return tmp_path / "own", tmp_path / "plugin"


@pytest.fixture
def opened(monkeypatch):
    """A GPU and sessions that cost what PLUGIN and OWN say; the sessions that were opened, with their options."""
    clock, found = StoppedClock(), []
    spec = get_model("sdxl-tiny")
    profiles = [TensorProfile(io.name, str(io.torch_dtype(spec.torch_dtype))[6:], (), (), ()) for io in spec.inputs]

    def session(folder, *, runtime_cache, **options):
        ms = PLUGIN if Path(folder).name == "plugin" else OWN
        one = StoppedSession(clock, profiles, ms, runtime_cache, opening=9.0, size=2_000_000_000)
        found.append((one, options))
        return one

    monkeypatch.setattr(module, "Session", session)
    monkeypatch.setattr(module, "CudaClock", lambda index: clock)
    monkeypatch.setattr(module, "local_arch", lambda index: 89)
    return found


def bench(*words: object) -> int:
    return main(["bench", *map(str, words)])


def test_two_engines_and_a_choice(engines, opened, tmp_path, capsys):
    out, best = tmp_path / "out" / "b.json", tmp_path / "best"
    own, plugin = engines
    code = bench(own, plugin, "--rounds", 2, "--repeat", 3, "--out", out, "--choose", best, "--seed", 5)
    assert code == 0
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0] == "sdxl-tiny on a GPU that is none, as a CUDA graph; seed 5, batch 3, height 128,"
    assert "B takes 0.750 of A's time, 0.750 to 0.750 by round." in lines
    assert lines[-1] == f"{best}: now a link to {plugin}" and best.resolve() == plugin.resolve()
    assert "timing 2 rounds of 3 calls" in printed.err
    found = json.loads(out.read_text())
    assert found["chosen"] == str(plugin) and found["inputs"]["batch"] == 3 and found["cuda_graph"]
    first, second = found["contenders"]
    assert (first["name"], first["attention"], second["attention"]) == (str(own), "tensorrt", "plugin")
    assert first["latency_ms"]["median"] == OWN and second["ratio"] == 0.75
    assert first["rounds_ms"] == [[OWN] * 3] * 2 and first["memory_bytes"] == 2_000_000_000
    assert (first["open_s"], first["reopen_s"]) == (12.5, 3.5)
    assert all(one.closed for one, _ in opened)


def test_options_reach_the_session(engines, opened):
    words = ["--no-graph", "--no-profile", "--device", 1, "--allow-host-code", "--allow-arch-mismatch", "--batch", 2]
    assert bench(engines[0], *words) == 0
    one, options = opened[0]
    want = {"allow_host_code": True, "allow_arch_mismatch": True, "device": 1, "cuda_graph": False, "memory": "torch"}
    assert options == want | {"weight_budget": None}
    inputs, _ = one.fed[0]
    assert len(inputs["sample"]) == 2 and inputs["sample"].dtype == torch.float16


def test_weight_budgets_are_contenders_of_each_engine(engines, opened, tmp_path, capsys):
    own, _ = engines
    change_manifest(own, plan=json.loads((own / "manifest.json").read_text())["plan"] | {"weight_streaming": True})
    out = tmp_path / "b.json"
    assert bench(own, "--weight-budget", "1.5GB", "--weight-budget", "0", "--out", out) == 0
    found = json.loads(out.read_text())["contenders"]
    assert [one["weight_budget_bytes"] for one in found] == [None, 1_500_000_000, 0]
    assert [one["name"] for one in found] == [str(own), f"{own}, 1.50 GB", f"{own}, 0.00 GB"]
    assert [options["weight_budget"] for _, options in opened[::2]] == [None, 1_500_000_000, 0]


@pytest.mark.skipif(local_arch() is not None, reason="there is a GPU")
def test_without_a_gpu_it_is_one_sentence(engines, capsys):
    assert bench(engines[0]) == 1
    want = "svdq-trt: CUDA device 0: not found, want an NVIDIA GPU and its driver. Run svdq-trt bench on the machine"
    assert capsys.readouterr().err.startswith(want)


@pytest.mark.parametrize(
    "words, code, text",
    [
        (["{own}", "{own}/"], 2, "own: named twice, want each engine once"),
        (["{own}", "--torch", "fp4"], 2, "--torch: 'fp4', want one of 16bit, fp8."),
        (["{own}", "--rounds", "0"], 2, "--rounds: 0, want 1 or more"),
        (["{own}", "--repeat", "-1"], 2, "--repeat: -1, want 1 or more"),
        (["{own}", "--inputs", "x", "--batch", "2"], 2, "--inputs: given with sizes"),
        (["{own}", "--out", "{own}"], 2, "own: a folder, want a file to write"),
        (["{own}"] * 9, 2, "ENGINE_DIR: 9 folders, want at most 8"),
        (["{own}", "--weight-budget", "much"], 2, "--weight-budget: 'much', want a number of bytes"),
        (
            ["{own}", "--weight-budget", "1GB"],
            2,
            "own: built without --weight-streaming, want an",
        ),
        (["{own}", "{plugin}", "--weight-budget", "0", "--choose", "x"], 2, "--choose: given with --weight-budget"),
        (["{own}", "--choose", "{here}/x"], 2, "--choose: one engine, want two or more to choose from"),
        (["{own}", "{plugin}", "--choose", "{own}"], 1, "own: something that is no link"),
        (["{own}", "{other}"], 1, "other: an engine of flux1-tiny, want one of sdxl-tiny, as "),
        (["{own}", "{rank}", "--choose", "{here}/x"], 1, "rank: another rank than "),
        (["{here}"], 1, "manifest.json: cannot be read"),
        (["{bare}"], 1, "bare: no plan yet (the build was incomplete), want model.plan"),
        (["{own}", "--inputs", "{here}/none"], 1, "none: not a readable safetensors file"),
    ],
)
def test_mistakes_are_one_line_before_anything_is_opened(engines, opened, tmp_path, capsys, words, code, text):
    for name, parts in (("other", {"model": "flux1-tiny"}), ("rank", {"rank": 16}), ("bare", {"plan": {}})):
        (tmp_path / name).mkdir()
        write_manifest(tmp_path / name)
        change_manifest(tmp_path / name, **parts)
    places = {name: tmp_path / name for name in ("own", "plugin", "other", "rank", "bare")} | {"here": tmp_path}
    assert bench(*(word.format(**places) for word in words)) == code
    (line,) = capsys.readouterr().err.strip().splitlines()
    assert line.startswith("svdq-trt: ") and text in line, line
    assert not opened
