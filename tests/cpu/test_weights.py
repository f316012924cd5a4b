"""SvdqWeights: the contract's names, shapes and dtypes, what is refused, and parts of a linear by value."""

from __future__ import annotations

from dataclasses import fields, replace

import pytest
import torch

from svdq_trt.base.errors import ShapeError, UnsupportedError
from svdq_trt.contract import numerics
from svdq_trt.contract.formats import FORMATS, INT4, Activation, Dtype
from svdq_trt.contract.ops import CONSTANTS, INPUTS, input_shapes
from svdq_trt.contract.weights import SvdqWeights, find_misfit, tensors_of, torch_dtype
from svdq_trt.nn import ops
from svdq_trt.quantize.curve import node_bytes

N, K, R = 24, 192, 16
F16, BF16, F32, INT8 = torch.float16, torch.bfloat16, torch.float32, torch.int8
FMT = pytest.mark.parametrize("fmt", FORMATS.values(), ids=lambda f: f.name)
ACT = pytest.mark.parametrize("act", [F16, BF16], ids=["f16", "bf16"])
NAMES = ["qweight", "wscale", "act_mul", "lora_down", "lora_up", "bias", "wscale2"]
WSCALE = {"int4": ((3, 24), "act"), "w4a8": ((3, 24), "int8"), "nvfp4": ((3, 24, 4), "int8"), "w4a16": ((3, 24), "act")}


def made(fmt, act=F16, n=N, k=K, r=R, seed=0) -> SvdqWeights:
    g = torch.Generator().manual_seed(seed)
    packed = numerics.quantize_weight(torch.randn(n, k, generator=g), fmt, act)
    return SvdqWeights(
        **packed._asdict(),
        act_mul=(0.5 + torch.rand(k, generator=g)).to(act),
        lora_down=torch.randn(r, k, generator=g).to(act),
        lora_up=torch.randn(n, r, generator=g).to(act),
        bias=torch.randn(n, generator=g).to(act),
        format=fmt,
        activation=Activation.SILU,
    )


# ---- the table -------------------------------------------------------------------------------------------------


def test_names_stand_in_one_order_everywhere():
    assert [spec.name for spec in CONSTANTS] == NAMES and [spec.name for spec in INPUTS] == ["x", *NAMES]
    settings = ["format", "activation", "act_unsigned", "act_shift"]
    assert [f.name for f in fields(SvdqWeights)] == [*NAMES, *settings]
    assert [a.name for a in torch.ops.svdq.linear.default._schema.arguments] == ["x", *NAMES, *settings]
    assert list(made(FORMATS["int4"]).tensors) == NAMES


def test_printed_shapes_follow_from_the_dimensions():
    assert [spec.shape for spec in INPUTS] == [
        "[..., K]",
        "[N, K/2]",
        "[K/64, N] or [K/64, N, 4]",
        "[K]",
        "[R, K]",
        "[N, R]",
        "[N]",
        "[N]",
    ]


@FMT
@ACT
def test_shapes_and_dtypes_of_every_format(fmt, act):
    shape, stored = WSCALE[fmt.name]
    want = {
        "qweight": ((24, 96), INT8),
        "wscale": (shape, act if stored == "act" else INT8),
        "act_mul": ((192,), act),
        "lora_down": ((16, 192), act),
        "lora_up": ((24, 16), act),
        "bias": ((24,), act),
        "wscale2": ((24,), F32),
    }
    assert input_shapes(fmt, N, K, R) == {name: shape for name, (shape, _) in want.items()}
    assert {s.name: torch_dtype(s.dtype_of(fmt), act) for s in CONSTANTS} == {
        n: dtype for n, (_, dtype) in want.items()
    }
    weights = made(fmt, act)
    assert {name: (tuple(t.shape), t.dtype) for name, t in weights.tensors.items()} == want
    weights.check("here", act)
    assert (weights.n, weights.k, weights.rank) == (N, K, R)
    assert (
        weights.nbytes
        == node_bytes(fmt, N, K, R)
        == sum(t.numel() * t.element_size() for t in weights.tensors.values())
    )


def test_int4_alone_has_unsigned_codes():
    assert [fmt.name for fmt in FORMATS.values() if fmt.unsigned_codes] == ["int4"]


# ---- what is refused -------------------------------------------------------------------------------------------


@FMT
@pytest.mark.parametrize("name", NAMES)
def test_wrong_shape_is_named(fmt, name):
    right = made(fmt)
    good = right.tensors
    longer = torch.cat((good[name], good[name][..., :1]), -1)
    got, want = str(tuple(longer.shape)), str(tuple(good[name].shape))
    assert find_misfit(good | {name: longer}, fmt, N, K, R, F16)[:3] == (name, got, want)
    if name != "qweight":  # which says what N and K are
        with pytest.raises(ShapeError) as caught:
            replace(right, **{name: longer}).check("here")
        assert str(caught.value) == f"here: {name} {got}, want {want}."
    del good[name]
    assert find_misfit(good, fmt, N, K, R, F16)[:3] == (name, "missing", want)


@FMT
@ACT
@pytest.mark.parametrize("name", NAMES)
def test_wrong_dtype_is_named(fmt, act, name):
    right = made(fmt, act)
    other = {INT8: act, F32: F16, F16: BF16, BF16: F16}[getattr(right, name).dtype]
    wrong = replace(right, **{name: getattr(right, name).to(other)})
    with pytest.raises(UnsupportedError) as caught:
        wrong.check("here", act)
    assert str(caught.value) == f"here, {name}: {other}, want {getattr(right, name).dtype} for x in {act}."


@FMT
def test_op_refuses_scales_that_are_read_as_others(fmt):
    """int8 scales of an int4 weight, or the reverse, would give numbers, and wrong ones."""
    right = made(fmt)
    wrong = replace(right, wscale=right.wscale.to(INT8 if fmt.wscale_dtype is Dtype.ACT else F16))
    x = torch.zeros(2, K, dtype=F16)
    assert ops.apply(x, right).shape == (2, N)
    with pytest.raises(UnsupportedError, match="svdq::linear, wscale: "):
        ops.apply(x, wrong)


# ---- parts, and several as one ---------------------------------------------------------------------------------


def shares_memory(a: SvdqWeights, b: SvdqWeights) -> bool:
    spaces = ({t.untyped_storage().data_ptr() for t in w.tensors.values() if t.numel()} for w in (a, b))
    return bool(set.intersection(*spaces))


@FMT
def test_rows_are_those_of_the_weight(fmt):
    whole, at = made(fmt), torch.tensor([5, 3, 16, 0, 7, 8, 9, 23])
    part = whole.rows(at)
    part.check("rows", F16)
    assert torch.equal(part.dequantize(), whole.dequantize()[at]) and torch.equal(part.bias, whole.bias[at])
    assert part.activation is Activation.SILU and not shares_memory(part, whole)


@FMT
@pytest.mark.parametrize(("start", "stop"), [(0, 64), (64, 192), (128, 192)])
def test_columns_are_those_of_the_weight_and_the_first_have_the_bias(fmt, start, stop):
    whole = made(fmt)
    part = whole.columns(start, stop)
    part.check("columns", F16)
    assert torch.equal(part.dequantize(), whole.dequantize()[:, start:stop])
    assert torch.equal(part.bias, whole.bias if start == 0 else torch.zeros(N, dtype=F16))
    assert not shares_memory(part, whole)


@FMT
def test_stack_has_the_rows_of_all(fmt):
    first = made(fmt)
    parts = [
        first,
        replace(made(fmt, n=8, r=32, seed=1), act_mul=first.act_mul),
        replace(made(fmt, seed=2), act_mul=first.act_mul),
    ]
    stacked = SvdqWeights.stack(parts)
    stacked.check("stack", F16)
    assert (stacked.n, stacked.rank) == (2 * N + 8, 2 * R + 32)
    want = torch.cat([part.dequantize() for part in parts])
    torch.testing.assert_close(stacked.dequantize(), want, rtol=1e-5, atol=1e-5)
    assert torch.equal(stacked.bias, torch.cat([part.bias for part in parts]))


@FMT
def test_more_rank_is_zeros_and_less_is_the_first(fmt):
    plain = made(fmt)
    more = plain.with_rank(48)
    more.check("more", F16)
    assert more.rank == 48 and not more.lora_up[:, R:].any() and not more.lora_down[R:].any()
    back = more.with_rank(R).contiguous()
    assert all(torch.equal(t, back.tensors[name]) for name, t in plain.tensors.items())
    assert plain.with_rank(0).lora_down.shape == (0, K) and plain.with_rank(0).lora_up.shape == (N, 0)


@FMT
def test_dequantize_is_what_the_op_multiplies_with(fmt):
    weights = made(fmt)
    smoothed = weights.unpack() * weights.act_mul.float()
    assert torch.equal(weights.residual(), smoothed)
    assert torch.equal(weights.dequantize(), smoothed + weights.lora_up.float() @ weights.lora_down.float())


def test_a_nodes_tensors_come_back_from_among_a_models():
    weights = made(FORMATS["w4a8"])
    model = weights.named("a.b") | {"a.weight": torch.zeros(1), "a.b.extra": torch.zeros(1)}
    assert sorted(weights.named("a.b")) == sorted(f"a.b.{name}" for name in NAMES)
    found = tensors_of("a.b", model)
    assert list(found) == NAMES and all(found[name] is tensor for name, tensor in weights.tensors.items())
    assert tensors_of("a", model) == {}


def test_a_module_that_was_cast_still_runs_on_the_cpu():
    """`module.half()` also casts wscale2, which is f32 in the contract; the CPU op converts what it reads."""
    weights = made(INT4)
    x = torch.randn(2, K, dtype=F16, generator=torch.Generator().manual_seed(0))
    want = ops.apply(x, weights)
    cast = replace(weights, wscale2=weights.wscale2.to(F16))
    assert torch.equal(ops.apply(x, cast), want)
