"""A quantized sdxl-tiny, made once, and its LoRA name table."""

from __future__ import annotations

import pytest

from svdq_trt.lora.apply import layer_shapes
from svdq_trt.lora.names import name_table
from svdq_trt.models import get_model
from tests.cpu.lora.lora_model import quantize


@pytest.fixture(scope="session")
def spec():
    return get_model("sdxl-tiny")


@pytest.fixture(scope="session")
def shapes(spec):
    return layer_shapes(spec)


@pytest.fixture(scope="session")
def names(spec, shapes):
    return name_table(spec, shapes)


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    return quantize("sdxl-tiny", tmp_path_factory.mktemp("sdxl"))


@pytest.fixture(scope="session")
def flux_base(tmp_path_factory):
    return quantize("flux1-tiny", tmp_path_factory.mktemp("flux"))
