"""The module beside the engines: its fp8 linears and its weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from svdq_trt.base.errors import UnsupportedError
from svdq_trt.bench import compiled
from svdq_trt.bench.compiled import E4M3_MAX, Fp8Linear, TorchContender, fp8_linears, random_module
from svdq_trt.checkpoint.random_weights import fill_random
from svdq_trt.models import MODELS, get_model
from tests.harness.stopped_clock import StoppedClock

#: a twin of each family
ONE_OF_EACH = sorted({type(s.family): name for name, s in reversed(MODELS.items()) if "tiny" in name}.values())


@torch.no_grad()
def test_a_linear_in_fp8_is_the_linear_to_e4m3s_rounding():
    rng = torch.Generator().manual_seed(0)
    linear = nn.Linear(64, 32, bias=False).bfloat16()
    linear.weight.copy_(torch.randn(32, 64, generator=rng) * torch.logspace(-3, 3, 32)[:, None])  # a scale for each row
    x = torch.randn(2, 5, 64, generator=rng).bfloat16() * torch.logspace(-2, 2, 5)[:, None].bfloat16()  # and each token
    low = Fp8Linear(linear)
    want = linear(x).float()
    sizes = x.float().norm(dim=-1, keepdim=True) * linear.weight.float().norm(dim=-1) / 64**0.5
    error = (low(x).float() - want) / sizes
    assert low(x).shape == want.shape and error.square().mean() < 0.06**2
    back = low.weight.t().float() * low.scale
    worst = linear.weight.float().abs().amax(-1, keepdim=True)
    assert ((back - linear.weight.float()).abs() <= worst * 16.1 / E4M3_MAX).all()  # half a step at the top: 16


@torch.no_grad()
def test_weights_are_those_of_the_seed_in_fp8_or_16_bit():
    spec = get_model("flux1-tiny")
    plain, low = random_module(spec, False, "cpu"), random_module(spec, True, "cpu")
    seeded = spec.build()
    fill_random(spec, seeded, 0)
    assert all(torch.equal(t, plain.state_dict()[name]) for name, t in seeded.state_dict().items())
    changed = fp8_linears(spec, spec.build())
    assert changed
    for name, layer in plain.named_modules():
        if isinstance(layer, nn.Linear):
            other = low.get_submodule(name)
            assert isinstance(other, Fp8Linear) == (name in changed), name
            assert (layer.bias is None) == (other.bias is None)
            assert layer.bias is None or torch.equal(layer.bias, other.bias)
            if name in changed:
                weight, scale = compiled.to_fp8(layer.weight)
                assert torch.equal(other.weight.t().view(torch.uint8), weight.view(torch.uint8))
                assert torch.equal(other.scale, scale)


@pytest.mark.parametrize("name", ONE_OF_EACH)
@torch.no_grad()
def test_the_module_runs_as_its_pipeline_calls_it(name):
    """Nothing of it is left on meta: tables that a class computes in its constructor have values."""
    spec = get_model(name)
    low = spec.profile.sizes(0)
    inputs = dict(zip((io.name for io in spec.inputs), spec.example_inputs(**low, seed=0), strict=True))
    y = random_module(spec, False, "cpu")(**spec.family.arguments(inputs), return_dict=False)[0]
    assert all(part.isfinite().all() for part in (y if isinstance(y, list) else [y]))


def test_fp8_needs_a_gpu_that_has_it(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 6))
    one = TorchContender(get_model("flux1-tiny"), "fp8", dict, StoppedClock())
    with pytest.raises(UnsupportedError, match="--torch fp8: a GPU without fp8, want sm_89 or newer"):
        one.prepare()
