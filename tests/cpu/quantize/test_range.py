"""float16's range inside a quantized linear: t = x · lora_downᵀ has room, and what overflows is seen and refused."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from svdq_trt.base.errors import RangeError
from svdq_trt.contract.formats import FORMATS, W4A16, Activation
from svdq_trt.contract.weights import SvdqWeights
from svdq_trt.evaluate.analyse import error_split
from svdq_trt.models import LinearGroup
from svdq_trt.nn.linear import SVDQLinear
from svdq_trt.quantize.layer import QuantizedLinear, quantize_group
from svdq_trt.quantize.lowrank import Seen, balance, make_room
from svdq_trt.quantize.preset import PRESETS
from svdq_trt.quantize.sensitivity import Probe

N, K = 64, 1024


def massive(sign_of_most: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Weight and f16 tokens with channels of up to 3e4 that add up in t to 1e6, and to 3e4 in y."""
    g = torch.Generator().manual_seed(9)
    w = 1e-3 * (1 + 0.2 * torch.randn(N, K, generator=g))
    x = 2e4 + 1e4 * torch.rand(96, K, generator=g)
    return w, (sign_of_most * x).half()


def quantized(fmt=W4A16, preset="fast", **kwargs) -> tuple[QuantizedLinear, torch.Tensor, torch.Tensor]:
    w, x = massive()
    return quantize_group([w], [None], x, fmt, 16, preset=PRESETS[preset], name="layer", **kwargs), w, x


def db(want: torch.Tensor, got: torch.Tensor) -> float:
    return float(10 * torch.log10(want.square().sum() / (got - want).square().sum()))


@pytest.mark.parametrize("preset", ["fast", "default"])
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda f: f.name)
def test_many_massive_channels_of_one_sign_run_in_f16_as_reported(fmt, preset):
    q, w, x = quantized(fmt, preset)
    seen = x[3::4] if q.rungs else x
    got = db(seen.float() @ w.T, q.module()(seen).float())
    assert got > 30 and got == pytest.approx(q.sqnr_db, abs=0.05)


def test_tokens_that_were_not_sampled_fit_within_the_maxima_seen():
    """A single token, known by its maxima only, may have any signs."""
    w, _ = massive()
    g = torch.Generator().manual_seed(1)
    sampled = torch.randn(64, K, generator=g).half()
    q = quantize_group([w], [None], sampled, W4A16, 16, x_absmax=torch.full((K,), 3e4), preset=PRESETS["fast"])
    x = torch.full((1, K), 3e4).half()
    assert db(x.float() @ w.T, q.module()(x).float()) > 30


def test_room_is_made_by_powers_of_two_and_only_where_t_needs_it():
    g = torch.Generator().manual_seed(2)
    up, down = balance(torch.randn(32, 3, generator=g), torch.randn(3, 64, generator=g))
    down[1] = down[1].abs()
    x = torch.rand(8, 64, generator=g)
    x[:, :32] *= 6e4
    down[0, :32] = down[2, :32] = 0
    a, b = make_room(up, down, Seen(x, x.abs().amax(0)))
    assert torch.equal(a[:, [0, 2]], up[:, [0, 2]]) and torch.equal(b[[0, 2]], down[[0, 2]])
    assert torch.equal(a[:, :, None] * b[None], up[:, :, None] * down[None])
    t = (x @ b.T).abs().amax(0)
    assert 16 * t[1] <= 65504 < 64 * t[1]


def test_room_never_takes_more_than_up_has():
    up, down = torch.full((8, 1), 3e4), torch.full((1, 64), 1.0)
    x = torch.full((1, 64), 6e4)
    a, b = make_room(up, down, Seen(x, x[0]))
    assert a.max() == 6e4 and b.max() == 0.5


def overflowing(sign: float) -> SvdqWeights:
    """Weights of `massive` whose factors are balanced without regard to t, with the first rank again, times `sign`."""
    q, _, _ = quantized()
    w = q.weights
    up, down = balance(w.lora_up.float(), w.lora_down.float())
    up[:, 1], down[1] = sign * up[:, 0], down[0]
    return SvdqWeights(**{**w.tensors, "lora_up": up.half(), "lora_down": down.half()}, format=w.format)


def test_what_overflows_in_every_trial_is_refused(monkeypatch):
    monkeypatch.setattr("svdq_trt.quantize.split.make_room", lambda up, down, seen: (up, down))
    with pytest.raises(RangeError, match=r"layer: torch\.float16 overflows inside the quantized linear"):
        quantized()


def test_reports_and_the_sensitivity_scan_see_an_overflow_of_t():
    w, x = massive()
    weights = overflowing(1)
    node = QuantizedLinear("0", weights, 0.0, 0.0, 0.0).node(("0",), (N,))
    assert not error_split(node, weights.named("0"), w, x)["both"] > 0

    class Spec:
        """Of a model that is one linear."""

        @staticmethod
        def wrap(module):
            return module

        @staticmethod
        def run(wrapped, inputs):
            return {"y": wrapped(*inputs)}

        @staticmethod
        def install(module, group, layer):
            module[0] = layer

    module = nn.Sequential(nn.Linear(K, N, bias=False))
    module[0].weight.data = w
    probe = Probe(module, Spec, [LinearGroup("0", ("0",))], [(x.float(),)])
    assert probe.output_db({"0": quantized()[0].module()}) > 30
    assert probe.output_db({"0": SVDQLinear(weights)}) < 0  # the op's output saturates
    with pytest.raises(RangeError, match="0: NaN or Inf in the model's output"):
        probe.output_db({"0": SVDQLinear(overflowing(-1))})


@pytest.mark.parametrize("activation", [Activation.NONE, Activation.GELU], ids=lambda a: a.name.lower())
def test_scan_rounds_what_the_op_rounds(activation):
    """Input and output in f32, x̂ and t in the act dtype: of values that f16 has, the same as the op in f16."""
    from svdq_trt.nn import ops

    w, x = massive()
    q = quantize_group([w / 1e4], [None], x, FORMATS["int4"], 16, activation=activation, preset=PRESETS["fast"])
    wide = ops.reference(x.float(), q.weights, torch.float16)
    assert torch.equal(wide.half(), ops.reference(x, q.weights))
    assert not torch.equal(wide, ops.reference(x.float(), q.weights))
