"""The limit of the twins' accuracy: a right model passes it, one without a branch does not."""

from __future__ import annotations

import pytest
import torch

from svdq_trt.calibrate import collect
from svdq_trt.checkpoint import load
from svdq_trt.contract.formats import FORMATS
from svdq_trt.contract.sqnr import decibels
from svdq_trt.models import get_model
from svdq_trt.quantize.preset import get_preset
from svdq_trt.quantize.run import quantize_model
from tests.harness.expected import MARGIN_DB, expected_sqnr


@pytest.mark.parametrize(
    ("name", "branches"),
    [
        ("flux1-tiny", ("single_transformer_blocks.1.proj_out.attn", "single_transformer_blocks.1.proj_out.mlp")),
        ("pixart-tiny", ("transformer_blocks.1.attn2.to_out.0", "transformer_blocks.1.ff.net.2")),
    ],
)
def test_lost_branches_are_below_the_limit(name, branches, tmp_path):
    spec = get_model(name)
    plain, module = load(spec, random_seed=0), load(spec, random_seed=0)
    groups, inputs = spec.groups(plain), spec.example_inputs(seed=9, dtype=torch.float32)
    nodes = quantize_model(
        module,
        spec,
        groups,
        collect(plain, spec, groups),
        FORMATS["int4"],
        32,
        get_preset("fast"),
        tmp_path / "svdq.safetensors",
        "key of no file at all",
        lambda *_: None,
    )
    limit = expected_sqnr(spec, plain.float(), nodes, inputs) - MARGIN_DB
    flat, reference = spec.wrap(module.float()), spec.wrap(load(spec, random_seed=0).float())

    @torch.inference_mode()
    def sqnr() -> float:
        got, want = flat(*inputs).double(), reference(*inputs).double()
        return decibels(float((got - want).square().sum() / want.square().sum()))

    assert sqnr() > limit
    for branch in branches:
        node = module.get_submodule(branch)
        codes, low_rank = node.qweight.clone(), node.lora_up.clone()
        node.qweight.zero_(), node.lora_up.zero_()
        assert sqnr() < limit, branch
        node.qweight.copy_(codes), node.lora_up.copy_(low_rank)
