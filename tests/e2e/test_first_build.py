"""Builds that start with nothing: options, a kill on the way, no place to write."""

from __future__ import annotations

import json
import subprocess

from tests.harness.builds import FIXED, TIMEOUT_S, build, command, kill_on_the_way


def test_killed_build_leaves_no_plan_and_resumes_with_its_options(tmp_path):
    """Rank 0, skipped layers, a user's calibration inputs and another format, in one build."""
    from safetensors.torch import save_file

    from svdq_trt.models import get_model

    spec = get_model("sdxl-tiny")
    inputs = spec.example_inputs(batch=1, height=64, width=64, seed=3)
    tensors = {io.name: t.contiguous() for io, t in zip(spec.inputs, inputs, strict=True)}
    save_file(tensors, tmp_path / "calib.safetensors")
    options = ["--rank", "0", "--format", "w4a8", "--skip", "*.ff.net.2", "--calibration"]
    options += [str(tmp_path / "calib.safetensors")]
    args = command("sdxl-tiny", tmp_path, "--arch", "sm_89", "--no-check", *FIXED, *options)
    partial = tmp_path / "sdxl-tiny-shared" / "w4a8-r0" / "svdq.safetensors.partial"
    kill_on_the_way(args, partial, 5)
    assert len(list(partial.glob("*/*.safetensors"))) >= 5 and not (partial.parent / "svdq.safetensors").exists()
    assert not list(tmp_path.rglob("model.plan"))
    again = subprocess.run(args, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "sdxl-tiny-sm_89" / "model.plan").exists() and not partial.exists()
    assert not [p for p in tmp_path.rglob(".*") if p.name.endswith(".tmp") or p.is_dir()]
    m = json.loads((tmp_path / "sdxl-tiny-sm_89" / "manifest.json").read_text())
    assert m["rank"] == 0 and {q["format"] for q in m["quantized"]} == {"w4a8", "w4a16"}
    skipped = [k for k in m["kept_16bit"] if k["reason"].startswith("left out by --skip")]
    assert skipped and all(k["name"].endswith("ff.net.2") for k in skipped)


def test_unwritable_output_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    done = build("sdxl-tiny", tmp_path / "file" / "x", "--arch", "sm_89", "--no-check")
    assert done.returncode == 1 and "Traceback" not in done.stderr and str(tmp_path) in done.stderr
