"""--rank auto by the command line: at one rank's bytes, a better output by prediction and by the check."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from svdq_trt.artifact import svdq_file
from svdq_trt.artifact.sensitivity import Sensitivity
from tests.harness.builds import FIXED, svdq

WEIGHTS = ["--model", "pixart-tiny", "--random-weights", "0", "--preset", "fast"]


def build(out: Path, *args: str) -> tuple[dict, str]:
    done = svdq("build", *WEIGHTS, "--arch", "sm_89", "--out", str(out), *FIXED, *args)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((out / "pixart-tiny-sm_89" / "manifest.json").read_text()), done.stdout + done.stderr


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder, scan file, the manifest of rank 32 and the bytes of its nodes."""
    out = tmp_path_factory.mktemp("auto")
    scan = out / "scan.json"
    done = svdq("sensitivity", *WEIGHTS, "--format", "int4", "--pixels", "64", "--samples", "1", "--out", str(scan))
    assert done.returncode == 0, done.stdout + done.stderr
    uniform, _ = build(out, "--rank", "32")
    loaded = svdq_file.load(out / "pixart-tiny-sm_89" / "svdq.safetensors")
    own = tuple(f"{node.name}." for node in loaded.nodes)
    size = sum(t.numel() * t.element_size() for name, t in loaded.tensors.items() if name.startswith(own))
    return out, scan, uniform, size


def test_auto_beats_one_rank_at_its_bytes(built):
    out, scan, uniform, size = built
    auto, log = build(out, "--rank", "auto", "--budget-bytes", str(size), "--sensitivity", str(scan))
    chosen = auto["allocation"]
    (before,), (after,) = uniform["accuracy"]["outputs"], auto["accuracy"]["outputs"]
    predicted = Sensitivity.load(scan).predicted_db
    print(
        f"\nrank 32: {size} bytes, predicted {predicted:.1f} dB, measured {before['sqnr_db']:.1f}; auto: "
        f"{chosen['bytes']} bytes, predicted {chosen['error_db']:.1f}, measured {after['sqnr_db']:.1f}"
    )
    assert chosen["bytes"] <= size and chosen["error_db"] > predicted + 1
    assert after["sqnr_db"] > before["sqnr_db"] + 0.5
    assert auto["config"]["rank"] == "auto" and chosen["gains"] == "scan.json"
    assert len({q["rank"] for q in auto["quantized"]}) > 1
    kept = [k for k in auto["kept_16bit"] if "--rank auto" in k["reason"]]
    assert bool(kept) == bool(chosen["kept"]) and "predicted at the output" in log
    assert auto["quantized_weight_bytes"] < 1.02 * uniform["quantized_weight_bytes"]


def test_same_again_is_reused_and_another_budget_is_not(built):
    out, scan, _, size = built
    args = ["--rank", "auto", "--budget-bytes", str(size), "--sensitivity", str(scan)]
    first, _ = build(out, *args)
    again, log = build(out, *args)
    assert log.count("reused") >= 6 and " done " not in log
    assert again["quantized"] == first["quantized"]
    report = svdq("report", str(out / "pixart-tiny-sm_89"), "--layers", "2")
    assert report.returncode == 0, report.stderr
    page = (out / "pixart-tiny-sm_89" / "report.html").read_text()
    assert all(word in page for word in ("error split", "smoothing exponents", "ranks", "rank sweep", "--rank auto"))
    words = [*WEIGHTS, "--arch", "sm_89", "--out", str(out), *args[:3], str(int(0.9 * size)), *args[4:]]
    done = svdq("quantize", *words)
    assert done.returncode == 0, done.stderr
    less = svdq_file.load(out / "pixart-tiny-shared" / "int4-rauto" / "svdq.safetensors").meta["allocation"]
    assert less["bytes"] <= 0.9 * size and done.stderr.count(" done ") == 2  # allocate and quantize
    assert less["error_db"] < first["allocation"]["error_db"]
