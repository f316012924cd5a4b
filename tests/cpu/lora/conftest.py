"""A quantized sdxl-tiny, made once, and its LoRA name table."""

from __future__ import annotations

import pytest
import torch

from svdq_trt import calibrate
from svdq_trt.checkpoint import load
from svdq_trt.lora.apply import layer_shapes
from svdq_trt.lora.names import name_table
from svdq_trt.models import get_model
from svdq_trt.quantize.preset import PRESETS
from svdq_trt.quantize.run import quantize_model
from svdq_trt.spec.formats import INT4


@pytest.fixture(scope="session")
def spec():
    return get_model("sdxl-tiny")


@pytest.fixture(scope="session")
def shapes(spec):
    return layer_shapes(spec)


@pytest.fixture(scope="session")
def names(spec, shapes):
    return name_table(spec, shapes)


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


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return quantize("sdxl-tiny", tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="session")
def flux_base(tmp_path_factory):
    return quantize("flux1-tiny", tmp_path_factory.mktemp("flux"))
