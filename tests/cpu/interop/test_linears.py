"""One linear at a time: by value against what the file means, and bit for bit back into it."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from svdq_trt.base.errors import ArtifactError, RangeError, ShapeError, SvdqError
from svdq_trt.contract.numerics import E4M3
from svdq_trt.contract.ops import input_shapes
from svdq_trt.interop import awq as awq_layer
from svdq_trt.interop import w4a4 as w4a4_layer
from svdq_trt.interop.layouts import NEW, OLD
from svdq_trt.interop.result import shifted_bias
from svdq_trt.interop.w4a4 import Linear4, Rows
from tests.cpu.interop import nunchaku_layers as make

BF16, F16 = torch.bfloat16, torch.float16

#: id -> arguments: every kind of W4A4 layer
KINDS = {
    "plain": {"n": 128, "k": 128},
    "rank-0": {"n": 128, "k": 128, "rank": 0},
    "rank-16": {"n": 256, "k": 128, "rank": 16},
    "rank-128": {"n": 128, "k": 256, "rank": 128},
    "fused-qkv": {"n": 384, "k": 128, "members": (128, 128, 128)},
    "padded-n": {"n": 200, "k": 128},
    "padded-k": {"n": 128, "k": 192},
    "padded-both": {"n": 72, "k": 320, "rank": 16},
    "each-member-padded": {"n": 3 * 96, "k": 64, "members": (96, 96, 96), "layout": "each"},
    "glu-pairs": {"n": 400, "k": 128, "layout": "pairs"},
    "no-bias": {"n": 128, "k": 128, "bias": False},
    "f16": {"n": 128, "k": 192, "dtype": F16},
    "fp4": {"n": 128, "k": 128, "fp4": True},
    "fp4-tensor-scale": {"n": 200, "k": 192, "fp4": True, "scales": "t"},
    "fp4-tensor-scale-f32": {"n": 128, "k": 128, "fp4": True, "scales": "T", "dtype": F16},
    "fp4-column-scales": {"n": 384, "k": 128, "fp4": True, "scales": "c", "members": (128, 128, 128)},
    "fp4-both-scales": {"n": 136, "k": 320, "fp4": True, "scales": "tc"},
    "fp4-each-member-padded": {"n": 192, "k": 64, "fp4": True, "members": (64, 64, 64), "layout": "each"},
}


def read(reader, name, rows, k, dtype, hints):
    """The linear as a file of nunchaku's, of either generation."""
    return w4a4_layer.read(reader, name, w4a4_layer.layout_of(reader, name), rows, k, dtype, hints)


def assert_same(a, b):
    assert sorted(a) == sorted(b)
    for name, t in a.items():
        assert t.dtype == b[name].dtype and t.shape == b[name].shape, name
        assert torch.equal(t.view(torch.uint8), b[name].view(torch.uint8)), name


@pytest.mark.parametrize("keys", [OLD, NEW], ids=["old", "new"])
@pytest.mark.parametrize("kind", KINDS)
def test_w4a4_by_value_and_back(tmp_path, kind, keys):
    args = KINDS[kind]
    truth = make.w4a4("x", keys=keys, **args)
    dtype, k = args.get("dtype", BF16), args["k"]
    rows = Rows.of(args.get("members") or (args["n"],), args.get("layout", "stacked"))
    linear = read(make.reader_of(tmp_path / "x", truth.tensors), "x", rows, k, dtype, {})
    shapes = input_shapes(linear.weights.format, args["n"], k, args.get("rank", 32))
    assert {name: tuple(t.shape) for name, t in linear.weights.tensors.items()} == shapes
    # the only rounding is that of 1/smooth to 16 bits; the low-rank part passes it by
    got, scale = linear.weights.dequantize().double(), truth.weight.abs().max()
    eps = torch.finfo(dtype).eps
    codes_max = (got - linear.weights.lora_up.double() @ linear.weights.lora_down.double()).abs()
    assert bool(((got - truth.weight).abs() <= eps * codes_max + 2e-6 * scale).all())
    assert torch.equal(linear.weights.bias, truth.bias)
    written = w4a4_layer.write("x", linear, keys, rows, bias=args.get("bias", True))
    filled = {name: t for name, t in written.tensors.items() if t.numel()}  # rank 0: see the next test
    assert_same(filled, truth.tensors)


@pytest.mark.parametrize("keys", [OLD, NEW], ids=["old", "new"])
def test_rank_0_is_an_empty_parameter_as_the_python_modules_have_it(tmp_path, keys):
    truth = make.w4a4("x", 128, 128, rank=0, keys=keys)
    rows = Rows.of((128,))
    linear = read(make.reader_of(tmp_path / "x", truth.tensors), "x", rows, 128, BF16, {})
    written = w4a4_layer.write("x", linear, keys, rows, bias=True).tensors
    assert written.pop(f"x.{keys.down}").shape == written.pop(f"x.{keys.up}").shape == (128, 0)
    assert_same(written, truth.tensors)


def test_fused_smoothing_keeps_the_informative_original(tmp_path):
    """Where smoothing was fused into the layer before, `smooth` is ones and `smooth_orig` is not."""
    truth = make.w4a4("x", 128, 128)
    truth.tensors["x.smooth"] = torch.ones_like(truth.tensors["x.smooth"])
    rows = Rows.of((128,))
    linear = read(make.reader_of(tmp_path / "x", truth.tensors), "x", rows, 128, BF16, {})
    assert bool((linear.weights.act_mul == 1).all())
    assert_same(w4a4_layer.write("x", linear, OLD, rows, bias=True).tensors, truth.tensors)


@pytest.mark.parametrize("fp4", [False, True])
@pytest.mark.parametrize("theirs,ours", [(BF16, F16), (F16, BF16)])
def test_a_file_in_the_other_16_bit_dtype(tmp_path, theirs, ours, fp4):
    truth = make.w4a4("x", 128, 128, dtype=theirs, fp4=fp4)
    linear = read(make.reader_of(tmp_path / "x", truth.tensors), "x", Rows.of((128,)), 128, ours, {})
    halves = {"act_mul", "lora_down", "lora_up", "bias"} | (set() if fp4 else {"wscale"})
    assert {linear.weights.tensors[name].dtype for name in halves} == {ours}
    got = linear.weights.dequantize().double()
    assert (got - truth.weight).norm() < 0.01 * truth.weight.norm()


@pytest.mark.parametrize("dtype", [BF16, F16])
def test_every_16_bit_multiplier_survives(tmp_path, dtype):
    """act_mul -> smooth -> act_mul for all positive values whose reciprocal fits, with the difference carried."""
    every = torch.arange(1, 0x7F80 if dtype is BF16 else 0x7C00, dtype=torch.int16).view(dtype)
    every = every[(1 / every.float()).to(dtype).isfinite() & ((1 / every.float()).to(dtype) > 0)]
    every = every[: len(every) // 128 * 128]
    for part in every.split(128 * 32):
        truth = make.w4a4("x", 128, len(part), rank=0, dtype=dtype)
        rows = Rows.of((128,))
        linear = read(make.reader_of(tmp_path / "x", truth.tensors), "x", rows, len(part), dtype, {})
        linear = Linear4(replace(linear.weights, act_mul=part.clone()), {})
        written = w4a4_layer.write("x", linear, OLD, rows, bias=True)
        again = make.reader_of(tmp_path / "y", written.tensors)
        back = read(again, "x", rows, len(part), dtype, written.exact)
        assert torch.equal(back.weights.act_mul, part)


@pytest.mark.parametrize("dtype", [BF16, F16])
@pytest.mark.parametrize("n,chunks", [(6 * 64, 6), (3 * 64, 3), (64, 1)])
def test_awq_by_value_and_back(tmp_path, n, chunks, dtype):
    truth = make.awq("x", n, 256, chunks, dtype)
    linear = awq_layer.read(make.reader_of(tmp_path / "x", truth.tensors), "x", n, 256, chunks, dtype, {})
    assert linear.weights.format.name == "w4a16" and linear.weights.lora_down.shape == (0, 256)
    assert torch.allclose(linear.weights.dequantize().double(), truth.weight, rtol=1e-6, atol=1e-7)
    assert torch.equal(linear.weights.bias, truth.bias)
    written, same = awq_layer.write("x", linear, chunks, bias=True)
    assert same and not written.exact
    assert_same(written.tensors, truth.tensors)


def test_awq_zero_points_become_a_low_rank_term(tmp_path):
    truth = make.awq("x", 96, 320, 3, symmetric=False)
    linear = awq_layer.read(make.reader_of(tmp_path / "x", truth.tensors), "x", 96, 320, 3, BF16, {})
    assert linear.weights.lora_down.shape == (16, 320)  # five groups, padded
    error = (linear.weights.dequantize().double() - truth.weight).abs().max()
    assert error <= torch.finfo(BF16).eps * 1.8  # offsets below 1.8, rounded to bf16


def test_awq_bias_that_plus_one_cannot_hold(tmp_path):
    """The file then has the rounded b + 1, and b comes back by the carried difference."""
    truth = make.awq("x", 96, 128, 3)
    linear = awq_layer.read(make.reader_of(tmp_path / "x", truth.tensors), "x", 96, 128, 3, BF16, {})
    bias = torch.linspace(-1, 1, 96).mul(0.01).to(BF16)
    linear = Linear4(replace(linear.weights, bias=bias), {})
    written, _ = awq_layer.write("x", linear, 3, bias=True)
    plain = awq_layer.read(make.reader_of(tmp_path / "y", written.tensors), "x", 96, 128, 3, BF16, {})
    assert not torch.equal(plain.weights.bias, bias)
    assert (plain.weights.bias.float() - bias.float()).abs().max() <= torch.finfo(BF16).eps / 2
    exact = awq_layer.read(make.reader_of(tmp_path / "z", written.tensors), "x", 96, 128, 3, BF16, written.exact)
    assert torch.equal(exact.weights.bias, bias)


def test_awq_low_rank_branch_of_the_cpp_engine(tmp_path):
    truth = make.awq("x", 96, 128, 3)
    g = torch.Generator().manual_seed(4)
    down, up = torch.randn(16, 128, generator=g).to(BF16), torch.randn(96, 16, generator=g).to(BF16)
    reordered = up.unflatten(0, (3, 32)).transpose(0, 1).flatten(0, 1).contiguous()
    tensors = truth.tensors | {"x.lora_down": down, "x.lora_up": reordered}
    linear = awq_layer.read(make.reader_of(tmp_path / "x", tensors), "x", 96, 128, 3, BF16, {})
    want = truth.weight + up.double() @ down.double()
    assert torch.allclose(linear.weights.dequantize().double(), want, rtol=1e-5, atol=1e-5)
    assert_same(awq_layer.write("x", linear, 3, bias=True)[0].tensors, tensors)


def test_awq_with_smoothing_is_rounded_again(tmp_path):
    truth = make.awq("x", 96, 128, 3)
    linear = awq_layer.read(make.reader_of(tmp_path / "x", truth.tensors), "x", 96, 128, 3, BF16, {})
    linear = linear._replace(weights=replace(linear.weights, act_mul=torch.full((128,), 1.5, dtype=BF16)))
    written, same = awq_layer.write("x", linear, 3, bias=True)
    back = awq_layer.read(make.reader_of(tmp_path / "y", written.tensors), "x", 96, 128, 3, BF16, {})
    assert not same
    want, got = 1.5 * truth.weight, back.weights.dequantize().double()
    assert ((got - want).norm() / want.norm()) < 0.15


def test_the_shift_of_unsigned_codes_goes_into_the_bias(tmp_path):
    """Q·(x + c) + b' = Q·x + b for every x: the same function for either kind of activation code."""
    linear = read(
        make.reader_of(tmp_path / "x", make.w4a4("x", 128, 128, dtype=F16).tensors), "x", Rows.of((128,)), 128, F16, {}
    )
    moved = shifted_bias(linear.weights, 0.171875)
    x = torch.randn(5, 128, generator=torch.Generator().manual_seed(1)).double()
    w = linear.weights.residual().double()
    want, got = x @ w.T + linear.weights.bias.double(), (x + 0.171875) @ w.T + moved.double()
    assert torch.allclose(got, want, atol=2 * float(moved.abs().max()) * torch.finfo(F16).eps)


@pytest.mark.parametrize("whole", [6e-8, 3e-6, 1e-3, 1.0, 40.0])
def test_a_tensor_scale_in_16_bit_per_row(tmp_path, whole):
    """SDXL's loader has no wtscale: the rows' scales stay normal numbers, and the tensor scale comes back exactly."""
    rows, truth = Rows.of((128,)), make.w4a4("x", 128, 192, fp4=True, dtype=F16)
    linear = read(make.reader_of(tmp_path / "x", truth.tensors), "x", rows, 192, F16, {})
    scales = torch.linspace(32, 448, linear.weights.wscale.numel()).to(E4M3).view(torch.int8)  # as of one tensor scale
    weights = replace(linear.weights, wscale=scales.view(3, 128, 4), wscale2=torch.full((128,), whole))
    written = w4a4_layer.write("x", Linear4(weights, {}), OLD, rows, bias=True, tensor_scale=False)
    assert "x.wtscale" not in written.tensors and not written.lost
    columns = written.tensors["x.wcscales"].float()
    assert columns.min() >= torch.finfo(F16).tiny and columns.dtype == torch.float32
    reader = make.reader_of(tmp_path / "y", written.tensors)
    plain, exact = (read(reader, "x", rows, 192, F16, hints).weights for hints in ({}, written.exact))
    assert_same(exact.tensors, weights.tensors)
    step, want = plain.unpack(), weights.unpack()
    assert ((step - want).abs() <= 2.0**-11 * want.abs()).all()


def test_group_scales_too_small_for_it_are_named(tmp_path):
    rows, truth = Rows.of((128,)), make.w4a4("x", 128, 128, fp4=True, dtype=F16)
    linear = read(make.reader_of(tmp_path / "x", truth.tensors), "x", rows, 128, F16, {})
    tiny = linear.weights.wscale.clone().fill_(0x78)  # 256
    tiny[0, 3, 2], tiny[1, 5, 0] = 0x01, 0x02  # 2^-9 and 2^-8
    weights = replace(linear.weights, wscale=tiny, wscale2=torch.full((128,), 6e-8))
    written = w4a4_layer.write("x", Linear4(weights, {}), OLD, rows, bias=True, tensor_scale=False)
    assert written.lost.startswith("2 of 1024 group scales rounded")


@pytest.mark.parametrize("known", ["1", True, float("nan"), -1.0, 1e30, 3.1])
def test_a_tensor_scale_that_does_not_agree_is_not_used(tmp_path, known):
    reader = make.reader_of(tmp_path / "x", make.w4a4("x", 128, 128, fp4=True, scales="c").tensors)
    plain, hinted = (read(reader, "x", Rows.of((128,)), 128, BF16, h).weights for h in ({}, {"tensor_scale": known}))
    assert_same(plain.tensors, hinted.tensors)


# ---- what is refused -------------------------------------------------------------------------------------------


def broken(name, change):
    return pytest.param(change, id=name)


def put(t, name, value):
    t[f"x.{name}"] = value


@pytest.mark.parametrize(
    "change",
    [
        broken("dtype", lambda t: put(t, "qweight", t["x.qweight"].view(torch.uint8))),
        broken("rows", lambda t: put(t, "qweight", t["x.qweight"][:64].clone())),
        broken("flat", lambda t: put(t, "qweight", t["x.qweight"].flatten())),
        broken("no-scales", lambda t: t.pop("x.wscales")),
        broken("scale-shape", lambda t: put(t, "wscales", t["x.wscales"].T.contiguous())),
        broken("scale-nan", lambda t: t["x.wscales"].view(-1)[3:4].fill_(float("nan"))),
        broken("scale-f32", lambda t: put(t, "wscales", t["x.wscales"].float())),
        broken("no-smooth", lambda t: t.pop("x.smooth")),
        broken("smooth-zero", lambda t: t["x.smooth"][5:6].zero_()),
        broken("smooth-negative", lambda t: t["x.smooth"][5:6].neg_()),
        broken("smooth-tiny", lambda t: t["x.smooth"][5:6].fill_(1e-39)),
        broken("smooth-inf", lambda t: t["x.smooth"][5:6].fill_(float("inf"))),
        broken("bias-length", lambda t: put(t, "bias", t["x.bias"][:100].clone())),
        broken("bias-inf", lambda t: t["x.bias"][1:2].fill_(float("inf"))),
        broken("no-up", lambda t: t.pop("x.lora_up")),
        broken("no-down", lambda t: t.pop("x.lora_down")),
        broken("rank-odd", lambda t: put(t, "lora_down", t["x.lora_down"][:, :20].clone())),
        broken("rank-differs", lambda t: put(t, "lora_up", t["x.lora_up"][:, :16].clone())),
        broken("down-nan", lambda t: t["x.lora_down"][3, 3:4].fill_(float("nan"))),
    ],
)
def test_broken_w4a4_is_refused(tmp_path, change):
    tensors = make.w4a4("x", 128, 128).tensors
    change(tensors)
    with pytest.raises((ArtifactError, ShapeError, RangeError)) as caught:
        read(make.reader_of(tmp_path / "x", tensors), "x", Rows.of((128,)), 128, BF16, {})
    assert "\n" not in str(caught.value)


def test_weights_where_the_model_has_padding_are_refused(tmp_path):
    """A file of a larger model: shapes agree after padding, contents do not."""
    tensors = make.w4a4("x", 128, 128).tensors
    for rows, k in (((120,), 128), ((128,), 112)):
        with pytest.raises(ShapeError, match="only padding"):
            read(make.reader_of(tmp_path / "x", tensors), "x", Rows.of(rows), k, BF16, {})


def test_nan_in_micro_scales_is_refused(tmp_path):
    tensors = make.w4a4("x", 128, 128, fp4=True).tensors
    tensors["x.wscales"].view(torch.uint8)[2, 7] = 0x7F
    with pytest.raises(RangeError, match="NaN"):
        read(make.reader_of(tmp_path / "x", tensors), "x", Rows.of((128,)), 128, BF16, {})


def test_scales_that_the_models_dtype_cannot_hold_are_refused(tmp_path):
    tensors = make.w4a4("x", 128, 128).tensors
    tensors["x.wscales"][0, 0] = 1e-9
    with pytest.raises(RangeError, match="too small for float16"):
        read(make.reader_of(tmp_path / "x", tensors), "x", Rows.of((128,)), 128, F16, {})


@pytest.mark.parametrize("text", ["!!", "eJwDAAAAAAE=", 3, None, "A" * 9999])
def test_hints_that_mean_nothing_are_ignored(tmp_path, text):
    tensors = make.w4a4("x", 128, 128).tensors
    reader = make.reader_of(tmp_path / "x", tensors)
    plain = read(reader, "x", Rows.of((128,)), 128, BF16, {})
    assert_same(
        read(reader, "x", Rows.of((128,)), 128, BF16, {"act_mul": text}).weights.tensors,
        plain.weights.tensors,
    )


@pytest.mark.parametrize(
    "change",
    [
        broken("dtype", lambda t: put(t, "qweight", t["x.qweight"].view(torch.int16))),
        broken("shape", lambda t: put(t, "qweight", t["x.qweight"].T.contiguous())),
        broken("no-scales", lambda t: t.pop("x.wscales")),
        broken("groups", lambda t: put(t, "wzeros", t["x.wzeros"][:1].clone())),
        broken("nan", lambda t: t["x.wscales"][0, 0:1].fill_(float("nan"))),
        broken("bias", lambda t: put(t, "bias", t["x.bias"][:-4].clone())),
    ],
)
def test_broken_awq_is_refused(tmp_path, change):
    tensors = make.awq("x", 96, 128, 3).tensors
    change(tensors)
    with pytest.raises(SvdqError) as caught:
        awq_layer.read(make.reader_of(tmp_path / "x", tensors), "x", 96, 128, 3, BF16, {})
    assert "\n" not in str(caught.value)
