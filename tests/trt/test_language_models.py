"""Language models as text encoders: TensorRT builds plans of their graphs, in bf16, of one size and of any."""

from __future__ import annotations

import onnx
import pytest
import torch

from svdq_trt.build.graph import export_model
from svdq_trt.build.sizes import Sizes
from svdq_trt.models.parts import Part
from tests.harness.language_models import LANGUAGE_MODELS

pytest.importorskip("transformers", reason="transformers is not installed: text encoders are its classes")


@pytest.mark.parametrize("name", LANGUAGE_MODELS)
def test_a_plan_is_built(name, tensorrt, tmp_path):
    class_name, config = LANGUAGE_MODELS[name]
    torch.manual_seed(0)
    part = Part("text_encoder", "", class_name, config, "bfloat16", 12)
    sizes = Sizes({"batch": (2, 2, 2), "tokens": (12, 12, 12)})
    export_model(part.build(), part, sizes.ranges(), tmp_path / "model.onnx", lambda *_: None)
    built = tensorrt.build(onnx.load(tmp_path / "model.onnx"))
    assert built.plan is not None, built.errors
