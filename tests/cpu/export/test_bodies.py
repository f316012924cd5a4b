"""The function bodies in ONNX Runtime against torch.ops.svdq.linear, and their pieces bit for bit."""

from __future__ import annotations

import onnx
import onnx_ir as ir
import pytest
import torch

from svdq_export.bodies import OPSET
from svdq_export.bodies.acts import _round_e2m1, _round_e4m3
from svdq_export.bodies.build import Body
from svdq_export.bodies.weights import dequantize_weight
from svdq_trt.contract import numerics
from svdq_trt.contract.formats import FORMATS, INT4, Activation, Dtype
from svdq_trt.contract.ops import INPUTS, LINEAR_OPS, OPS, OpSpec, input_shapes, op_type
from tests.harness.export_toy import db, one_node, random_x, runner, session, tensors

#: dtype -> SQNR in dB: what rounding the output to the dtype costs by itself (about 73.6 and 55.6 dB on
#: Gaussian data; f32 shows the order of the sums and the runtimes' erf and exp). A flipped code costs more.
LIMITS = {torch.float16: 74, torch.bfloat16: 56, torch.float32: 110}
#: Share of equal 16-bit outputs, where they are not so small that the tail of exp shows.
EQUAL, TAIL = 0.9, 1e-3
ALL = pytest.mark.parametrize("op", LINEAR_OPS.values(), ids=list(LINEAR_OPS))  # pairs: test_mlp.py


def torch_op(op: OpSpec, x, weights, act_unsigned=0, act_shift=0.0):
    rest = [weights[spec.name] for spec in INPUTS[1:]]
    return torch.ops.svdq.linear(x, *rest, op.format.name, op.activation.value, act_unsigned, act_shift)


def assert_close(want, got):
    assert torch.equal(want.isnan(), got.isnan())
    finite = want.isfinite()
    assert db(want[finite], got[finite]) > LIMITS[want.dtype]
    visible = finite & (want.abs() > TAIL)
    assert want.dtype == torch.float32 or (want[visible] == got[visible]).float().mean() > EQUAL


@ALL
@pytest.mark.parametrize("r", [0, 16])
@pytest.mark.parametrize("dtype", LIMITS, ids=["f16", "bf16", "f32"])
def test_body_matches_the_torch_op_and_keeps_nan_in_its_row(op, r, dtype):
    weights = tensors(op.format, 48, 192, r, dtype)
    x = random_x(192, dtype)
    x[1, 4, 5], x[0, 3, 100] = torch.nan, -torch.inf
    want, got = torch_op(op, x, weights), runner(one_node(op, weights, 3))(x)
    assert got.shape == want.shape and got.isnan().any(-1).sum() == 2
    assert_close(want, got)


@ALL
def test_checker_takes_node_and_body(op):
    proto = ir.to_proto(one_node(op, tensors(op.format, 16, 64, 0, torch.float16), 3))
    onnx.checker.check_model(proto, full_check=True)
    assert [f.name for f in proto.functions] == [op.op_type]


@pytest.mark.parametrize("activation", [Activation.GEGLU, Activation.SWIGLU], ids=["geglu", "swiglu"])
@pytest.mark.parametrize("fmt", FORMATS.values(), ids=list(FORMATS))
@pytest.mark.parametrize(
    "lead", [[(5,), (1,)], [(3, 7), (1, 2), (0, 4)], [(2, 3, 4), (1, 1, 9)]], ids=["2d", "3d", "4d"]
)
def test_one_session_takes_every_size_of_its_rank(fmt, lead, activation):
    op = OPS[op_type(fmt, activation)]
    weights = tensors(fmt, 32, 128, 16, torch.float16)
    run = runner(one_node(op, weights, len(lead[0]) + 1))
    for sizes in lead:
        x = torch.randn(*sizes, 128, generator=torch.Generator().manual_seed(2)).half()
        want, got = torch_op(op, x, weights), run(x)
        assert got.shape == want.shape == (*sizes, 16)
        assert not want.numel() or db(want, got) > LIMITS[torch.float16]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=["f16", "bf16"])
def test_unsigned_codes_and_shift_enter_as_attributes(dtype):
    op, weights = OPS[op_type(INT4)], tensors(INT4, 48, 192, 16, dtype)
    x = torch.nn.functional.gelu(random_x(192, dtype))
    want = torch_op(op, x, weights, 1, 0.171875)
    assert_close(want, runner(one_node(op, weights, 3, 1, 0.171875))(x))
    assert db(want, torch_op(op, x, weights)) < 40  # the attributes do change the result


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=list(FORMATS))
def test_only_f16_saturates(fmt):
    for dtype in LIMITS:
        weights = tensors(fmt, 16, 64, 0, dtype)
        weights["bias"] = torch.tensor([60000.0, -60000.0] * 8).to(dtype)
        weights["wscale2"] *= 16  # and not a large x: nvfp4's own scale ends at 448 · 6
        x = (torch.randn(3, 64, generator=torch.Generator().manual_seed(3)) * 800).to(dtype)
        want, got = (
            torch_op(OPS[op_type(fmt)], x, weights),
            runner(one_node(OPS[op_type(fmt)], weights, 2))(x),
        )
        assert_close(want, got)
        if dtype == torch.float16:
            assert (want == 65504).any() and (want == -65504).any() and got.isfinite().all()
        else:
            assert (got > 65504).any() and (got < -65504).any()


def fragment(build, **inputs):
    """Run a piece of a body on given tensors."""
    b = Body()
    values = {
        name: ir.Value(name=name, type=ir.TensorType(ir.tensor(t).dtype), shape=ir.Shape(t.shape))
        for name, t in inputs.items()
    }
    out = build(b, *values.values())
    out.name, out.type = "out", ir.TensorType(ir.DataType.FLOAT)
    graph = ir.Graph(list(values.values()), [out], nodes=b.nodes, opset_imports={"": OPSET}, name="g")
    live = session(ir.to_proto(ir.Model(graph, ir_version=10)).SerializeToString())
    return torch.from_numpy(live.run(None, {name: t.numpy() for name, t in inputs.items()})[0])


@pytest.mark.parametrize("fmt", FORMATS.values(), ids=list(FORMATS))
def test_weights_decode_exactly_for_every_code_and_scale(fmt):
    n, k = 64, 256
    qweight = torch.arange(-128, 128).to(torch.int8).repeat(n * k // 512).view(n, k // 2)  # every byte
    shape = input_shapes(fmt, n, k, 0)["wscale"]
    if fmt.wscale_dtype is Dtype.ACT:
        wscale = torch.rand(shape, generator=torch.Generator().manual_seed(0)).half()
    elif fmt.name == "w4a8":
        wscale = (torch.arange(n * k // 64) % 18 + 1).to(torch.int8).view(shape)
    else:  # every e4m3 byte but the two NaNs
        finite = torch.tensor([v for v in range(256) if v & 127 != 127], dtype=torch.uint8).view(torch.int8)
        wscale = finite.repeat(5)[: n * k // 16].view(shape)
        assert wscale.unique().numel() == 254
    wscale2 = torch.rand(n, generator=torch.Generator().manual_seed(1))
    want = numerics.dequantize_weight(numerics.PackedWeight(qweight, wscale, wscale2), fmt)
    got = fragment(lambda b, *v: dequantize_weight(b, *v, fmt), qweight=qweight, wscale=wscale, wscale2=wscale2)
    assert torch.equal(want, got)


def test_e4m3_rounding_is_exact_at_every_value_midpoint_and_neighbour():
    grid = torch.arange(0, 127, dtype=torch.uint8).view(torch.float8_e4m3fn).float()
    points = torch.cat([grid, (grid[1:] + grid[:-1]) / 2])
    around = [
        points,
        torch.nextafter(points, torch.tensor(500.0)),
        torch.nextafter(points, torch.tensor(0.0)),
    ]
    s = torch.cat([*around, torch.tensor([1e-30, 2.0**-126, 2.0**-149])]).clamp(max=448.0)
    assert torch.equal(fragment(_round_e4m3, s=s), s.to(torch.float8_e4m3fn).float())


def test_e2m1_rounding_is_exact_at_every_midpoint_and_neighbour():
    grid = torch.tensor([0, 0.25, 0.5, 0.75, 1, 1.25, 1.5, 1.75, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 1e30])
    v = torch.cat([grid, torch.nextafter(grid, torch.tensor(9.0)), torch.nextafter(grid, torch.tensor(0.0))])
    v = torch.cat([v, -v])
    assert torch.equal(fragment(_round_e2m1, v=v), numerics.round_e2m1(v))
