"""``svdq-trt bench`` on a GPU: an engine beside a copy of itself, and beside torch.

SVDQ_TEST_ENGINE and SVDQ_TEST_HOST_CODE: as in test_session.py.
"""

from __future__ import annotations

import json
import os
import shutil

import torch

from svdq_trt.cli import main

SIZES = ["--batch", "2", "--height", "128", "--width", "128"]
OPTIONS = ["--allow-arch-mismatch", *(["--allow-host-code"] if os.environ.get("SVDQ_TEST_HOST_CODE") == "1" else [])]


def bench(out, *words):
    assert main(["bench", *map(str, words), "--out", str(out), *SIZES, *OPTIONS]) == 0
    return json.loads(out.read_text())


def test_an_engine_is_as_fast_as_its_copy(folder, tmp_path, capsys):
    copy, best = tmp_path / "copy", tmp_path / "best"
    shutil.copytree(folder, copy, ignore=shutil.ignore_patterns("runtime-cache-*"))
    found = bench(tmp_path / "b.json", folder, copy, "--choose", best)
    one, other = found["contenders"]
    assert 0.8 < other["ratio"] < 1.25
    assert one["latency_ms"]["p10"] <= one["latency_ms"]["median"] <= one["latency_ms"]["p90"]
    assert one["memory_bytes"] > one["plan_bytes"] / 2 and one["plan_sha256"] == other["plan_sha256"]
    for engine in (one, other):
        assert engine["open"]["compiled"] and engine["open_s"] > 0 < engine["reopen_s"]
        assert engine["layers_ms"] and sum(engine["layers_ms"].values()) > 0
        assert engine["kernels"]["ours: product"]["count"], "CUPTI sees no kernels"
    if one["backend"].startswith("tensorrt-rtx"):
        assert not other["reopen"]["compiled"] and other["reopen_s"] < other["open_s"]
    assert best.resolve() in (folder.resolve(), copy.resolve())
    assert max(len(line) for line in capsys.readouterr().out.splitlines()[:-1]) <= 80


def test_a_graph_is_no_slower_than_kernels_one_by_one(folder, tmp_path):
    (graph,) = bench(tmp_path / "g.json", folder, "--no-profile")["contenders"]
    (single,) = bench(tmp_path / "s.json", folder, "--no-profile", "--no-graph")["contenders"]
    assert graph["kernels"] is None and graph["latency_ms"]["median"] < 1.1 * single["latency_ms"]["median"]


def test_beside_torch(folder, tmp_path):
    words = ["--torch"] + (["--torch", "fp8"] if torch.cuda.get_device_capability() >= (8, 9) else [])
    engine, *modules = bench(tmp_path / "b.json", folder, *words)["contenders"]
    assert engine["ratio"] == 1 and len(modules) == words.count("--torch")
    for module in modules:
        assert module["latency_ms"]["median"] > 0 and module["reopen_s"] is None and module["peak_bytes"] > 0
        assert module["kernels"]["matmul"]["count"] and not module["kernels"]["ours: product"]["count"]
