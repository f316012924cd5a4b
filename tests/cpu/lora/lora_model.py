"""A quantized model for these tests."""

from __future__ import annotations

import torch

from svdq_trt import calibrate
from svdq_trt.checkpoint import load
from svdq_trt.contract.formats import INT4
from svdq_trt.models import get_model
from svdq_trt.quantize.preset import PRESETS
from svdq_trt.quantize.run import quantize_model


def quantize(name, folder, rank=16):
    """svdq.safetensors of random weights (seed 0), as `svdq-trt build --preset fast` writes it."""
    torch.set_num_threads(1)
    spec = get_model(name)
    module = load(spec, random_seed=0)
    groups = spec.groups(module)
    calibration = calibrate.collect(module, spec, groups, samples=1)
    out = folder / "svdq.safetensors"
    quantize_model(module, spec, groups, calibration, INT4, rank, PRESETS["fast"], out, "key", lambda *a: None)
    return out
