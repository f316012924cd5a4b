"""The model with fused nodes computes what the model computed, and exports with dynamic sizes."""

import pytest
import torch
from torch import nn

from svdq_trt.checkpoint import load
from svdq_trt.models import get_model, stack_group
from svdq_trt.models.recipe import weight_layers
from svdq_trt.spec.formats import Activation

SPEC = get_model("sdxl-tiny")


class DenseNode(nn.Module):
    """A plain linear in the place of an svdq node, with the op's GEGLU."""

    def __init__(self, weight, bias, activation):
        super().__init__()
        self.linear = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
        self.linear.weight = nn.Parameter(weight.clone())
        if bias is not None:
            self.linear.bias = nn.Parameter(bias.clone())
        self.activation = activation

    def forward(self, x):
        y = self.linear(x)
        if self.activation is Activation.GEGLU:
            value, gate = y.chunk(2, dim=-1)
            return value * nn.functional.gelu(gate)
        return y


def fuse_all(module):
    for group in SPEC.groups(module):
        weight, bias = stack_group(module, group)
        node = DenseNode(weight, bias, group.activation)
        SPEC.install(module, group, node if group.activation is not Activation.NONE else node.linear)
        assert module.get_submodule(group.node) is not None
    return module


@pytest.fixture(scope="module")
def fused():
    return fuse_all(load(SPEC, random_seed=1).float())


@pytest.mark.parametrize("batch,height,width", [(1, 64, 128), (3, 192, 64)])
@torch.inference_mode()
def test_fused_model_equals_the_original(fused, batch, height, width):
    original = load(SPEC, random_seed=1).float()
    inputs = SPEC.example_inputs(batch, height, width, dtype=torch.float32)
    want, got = SPEC.wrap(original)(*inputs), SPEC.wrap(fused)(*inputs)
    assert want.shape == (batch, 4, height // 8, width // 8)
    assert 0.3 < want.std() < 3
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5 * float(want.abs().max()))


def test_fused_model_has_no_replaced_member_left(fused):
    original = SPEC.build()
    groups = SPEC.groups(original)
    left = set(weight_layers(fused))
    for group in groups:
        assert not (set(group.members) - {group.node}) & left, group.node


def test_partly_fused_model_equals_the_original():
    """Groups left out by --skip keep diffusers' own attention beside fused ones."""
    module, original = load(SPEC, random_seed=2).float(), load(SPEC, random_seed=2).float()
    groups = SPEC.groups(module)
    for group in groups[::2]:  # alternates between fused and plain inside a block
        weight, bias = stack_group(module, group)
        SPEC.install(module, group, DenseNode(weight, bias, group.activation))
    inputs = SPEC.example_inputs(1, 64, 64, dtype=torch.float32)
    with torch.inference_mode():
        torch.testing.assert_close(
            SPEC.wrap(module)(*inputs), SPEC.wrap(original)(*inputs), rtol=0, atol=1e-4
        )


def test_example_inputs_match_the_declared_shapes_and_seed():
    sizes = {"batch": 2, "height": 128, "width": 64, "tokens": 9}
    a = SPEC.example_inputs(**sizes, seed=5)
    for io, t in zip(SPEC.inputs, a, strict=True):
        assert tuple(t.shape) == io.shape(sizes), io.name
        assert t.dtype == (torch.float16 if io.dtype == "act" else torch.float32), io.name
    b, c = SPEC.example_inputs(**sizes, seed=5), SPEC.example_inputs(**sizes, seed=6)
    assert all(x.equal(y) for x, y in zip(a, b, strict=True))
    assert not a[0].equal(c[0])
    assert a[-1][0].tolist() == [128, 64, 0, 0, 128, 64]


def test_fused_model_exports_with_dynamic_batch_and_resolution():
    module = SPEC.wrap(fuse_all(load(SPEC, random_seed=1)))
    dims = {}
    shapes = []
    for io in SPEC.inputs:
        dynamic = {}
        for i, axis in enumerate(io.dims):
            if isinstance(axis, int) or SPEC.profile.is_static(axis.symbol):
                continue
            low, _, high = getattr(SPEC.profile, axis.symbol)
            step = axis.divisor * axis.multiple
            root = dims.setdefault(
                axis.symbol, torch.export.Dim(axis.symbol, min=low // step, max=high // step)
            )
            dynamic[i] = axis.multiple * root if axis.multiple > 1 else root
        shapes.append(dynamic)
    program = torch.export.export(
        module, SPEC.example_inputs(2, 128, 192), dynamic_shapes=tuple(shapes), strict=False
    )
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.cat.default:
            dtypes = {n.meta["val"].dtype for n in node.args[0]}
            assert len(dtypes) == 1, "a strongly typed network takes no Concat of two dtypes"
    other = SPEC.example_inputs(3, 64, 256)
    with torch.inference_mode():
        got, want = program.module()(*other), module(*other)
    assert got.dtype == torch.float16
    torch.testing.assert_close(got, want)
