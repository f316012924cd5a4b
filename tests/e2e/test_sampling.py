"""A build that calibrates on its own pipeline's inputs, by the command line."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch

from svdq_trt.artifact.calibration import Calibration
from svdq_trt.calibrate.inputs import InputFile
from svdq_trt.models import get_model
from tests.harness.builds import ROOT, TIMEOUT_S
from tests.harness.tiny_pipelines import sdxl_parts

pytest.importorskip("transformers", reason="transformers is not installed: the text encoders come from it")


def test_prompts_are_run_in_the_pipeline_that_is_quantized(tmp_path):
    from diffusers import StableDiffusionXLPipeline

    spec, folder, out = get_model("sdxl-tiny"), tmp_path / "pipeline", tmp_path / "engines"
    torch.manual_seed(1)
    unet = spec.model_class()(**spec.config).half()
    (tmp_path / "words").mkdir()
    parts = sdxl_parts(tmp_path / "words")
    StableDiffusionXLPipeline(unet=unet, **parts, add_watermarker=False).save_pretrained(folder)
    (tmp_path / "prompts.txt").write_text("a fox\n\ntwo owls\n")
    words = [
        sys.executable,
        str(ROOT / "build_engines.py"),
        "--model",
        "sdxl-tiny",
        "--checkpoint",
        str(folder),
        "--calibration-prompts",
        str(tmp_path / "prompts.txt"),
        "--calibration-samples",
        "2",
        "--calibration-steps",
        "2",
        "--preset",
        "fast",
        "--arch",
        "sm_90",
        "--backend",
        "tensorrt",
        "--no-check",
        "--batch",
        "1",
        "--height",
        "128",
        "--width",
        "64",
        "--out",
        str(out),
    ]
    done = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert done.returncode == 4, done.stderr  # no TensorRT here builds for this arch
    shared = out / "sdxl-tiny-shared"
    inputs = InputFile(spec, shared / "calibration-inputs.safetensors")
    sizes = inputs.groups[0].sizes
    assert inputs.samples == 4 and (sizes["height"], sizes["width"]) == (128, 64)
    meta = Calibration.load(shared / "calib.safetensors").meta
    assert (meta["source"], meta["samples"]) == ("calibration-inputs.safetensors", 4)
    manifest = json.loads((out / "sdxl-tiny-sm_90" / "manifest.json").read_text())
    assert manifest["config"]["sampling"] | {"pipeline": "", "prompts": ""} == {
        "pipeline": "",
        "prompts": "",
        "samples": 2,
        "steps": 2,
        "guidance": None,
        "seed": 0,
    }
    again = subprocess.run(words, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert again.returncode == 4 and " done " not in again.stderr, again.stderr
