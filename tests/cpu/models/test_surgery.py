"""Each tiny twin with fused nodes computes what it computed without, and exports with dynamic sizes."""

from collections import Counter

import pytest
import torch

from svdq_trt.build.graph import dynamic_shapes
from svdq_trt.checkpoint import load
from svdq_trt.models import TWINS, get_model, stack_group
from svdq_trt.models.recipe import weight_layers
from svdq_trt.models.spec import SYMBOLS
from svdq_trt.nn import attention
from tests.harness.nodes import DenseNode
from tests.harness.published import joined


@pytest.fixture(scope="module", params=TWINS)
def spec(request):
    return get_model(request.param)


def fuse(spec, module, groups):
    stacked = [stack_group(module, group) for group in groups]
    for group, (weight, bias) in zip(groups, stacked, strict=True):
        spec.install(module, group, DenseNode(weight, bias, group.activation))
        assert isinstance(module.get_submodule(group.node), DenseNode)
    return module


@pytest.fixture(scope="module")
def fused(spec):
    module = load(spec, random_seed=1).float()
    return fuse(spec, module, spec.groups(module))


@pytest.mark.parametrize("batch,height,width", [(1, 64, 128), (3, 192, 64)])
@torch.inference_mode()
def test_fused_model_equals_the_original(spec, fused, batch, height, width):
    original = load(spec, random_seed=1).float()
    inputs = spec.example_inputs(batch, height, width, dtype=torch.float32)
    found = spec.run(spec.wrap(original), inputs)
    sizes = spec.profile.sizes(1) | {"batch": batch, "height": height, "width": width}
    assert all(tuple(found[io.name].shape) == io.shape(sizes) for io in spec.outputs)
    want, got = joined(list(found.values())), joined(list(spec.run(spec.wrap(fused), inputs).values()))
    assert 0.3 < want.std() < 3
    torch.testing.assert_close(got, want, rtol=0, atol=2e-5 * float(want.abs().max()))


def test_fused_model_has_no_replaced_member_left(spec, fused):
    groups = spec.groups(spec.build())
    left = set(weight_layers(fused))
    for group in groups:
        assert not (set(group.members) - {group.node}) & left, group.node


def test_partly_fused_model_equals_the_original(spec):
    """Groups left out by --skip keep diffusers' own layers beside fused ones."""
    module, original = load(spec, random_seed=2).float(), load(spec, random_seed=2).float()
    fuse(spec, module, spec.groups(module)[::2])  # alternates between fused and plain inside a block
    inputs = spec.example_inputs(1, 64, 64, dtype=torch.float32)
    with torch.inference_mode():
        torch.testing.assert_close(spec.wrap(module)(*inputs), spec.wrap(original)(*inputs), rtol=0, atol=1e-4)


_FLUX = {"JointNormedRotary": 2, "NormedRotary": 2}
#: twin -> op types of its attentions; SANA's self attention is linear and has none
ATTENTION_OPS = {
    "flux1-tiny": _FLUX,
    "flux1-fill-tiny": _FLUX,
    "flux1-kontext-tiny": _FLUX,
    "qwen-image-tiny": {"JointNormedRotary": 2},
    "qwen-image-edit-tiny": {"JointNormedRotary": 2},
    "z-image-tiny": {"NormedRotary": 3},
    "flux2-tiny": _FLUX,
    "longcat-tiny": _FLUX,
    "krea2-tiny": {"Normed": 2, "NormedRotary": 2},
    "chroma-tiny": {},
    "t5-tiny": {},
    "wan-tiny": {"Rotary": 2, "Cross": 2},
    "sd3-tiny": {"JointNormed": 3, "Normed": 1},
    "sdxl-tiny": {"": 10, "Cross": 10},
    "sdxl-controlnet-tiny": {"": 4, "Cross": 4},
    "flux1-controlnet-tiny": {"JointNormedRotary": 1, "NormedRotary": 1},
    "pixart-tiny": {"": 2, "CrossMasked": 2},
    "sana-tiny": {"CrossMasked": 2},
}


@pytest.mark.parametrize("step", [1, 2], ids=["all", "every second node"])
@torch.inference_mode()
def test_attention_ops_compute_what_torchs_attention_does(spec, step, monkeypatch):
    """Where q, k and v come from fused nodes, which is known without weights; others keep torch's attention."""
    module, original = load(spec, random_seed=2).float(), load(spec, random_seed=2).float()
    groups = spec.groups(module)
    skip = [group.node for group in groups if group not in groups[::step]]
    known = attention.find_packed(spec, skip)
    flat = spec.wrap(fuse(spec, module, groups[::step]))
    calls = []
    real = attention.apply
    monkeypatch.setattr(attention, "apply", lambda call: calls.append(call) or real(call))
    assert attention.use_packed(flat, {1000}) == []
    told = attention.use_packed(flat, None)
    inputs = spec.example_inputs(2, 64, 64, dtype=torch.float32)
    torch.testing.assert_close(flat(*inputs), spec.wrap(original)(*inputs), rtol=0, atol=1e-4)
    found = Counter(call.op.op_type.removeprefix("SVDQAttention") for call in calls)
    assert list(known.values()) == [call.head_size for call in calls]
    assert {f"{spec.wrapped}.{name}" for name in known} <= {*told}
    if step == 1:
        assert found == ATTENTION_OPS[spec.name] and len(told) == sum(found.values())
    else:
        assert sum(found.values()) <= sum(ATTENTION_OPS[spec.name].values())
    if spec.name == "sdxl-tiny" and step == 1:  # keys and values of blocks in a row are parts of one projection
        assert {call.settings.kv_part for call in calls} == {0, 1}
        assert all(call.tensors["kv"].is_contiguous() for call in calls if "kv" in call.tensors)


def test_example_inputs_match_the_declared_shapes_and_seed(spec):
    sizes = spec.profile.sizes(1) | {"batch": 2, "height": 128, "width": 64}
    a = spec.example_inputs(**sizes, seed=5)
    for io, t in zip(spec.inputs, a, strict=True):
        assert tuple(t.shape) == io.shape(sizes), io.name
        assert t.dtype == (spec.torch_dtype if io.dtype == "act" else getattr(torch, io.dtype)), io.name
    b, c = spec.example_inputs(**sizes, seed=5), spec.example_inputs(**sizes, seed=6)
    assert all(x.equal(y) for x, y in zip(a, b, strict=True))
    assert not a[0].equal(c[0])


def test_sdxl_time_ids_say_the_size():
    spec = get_model("sdxl-tiny")
    inputs = spec.example_inputs(2, 128, 64)
    assert inputs[-1][0].tolist() == [128, 64, 0, 0, 128, 64]


def test_fused_model_exports_with_dynamic_batch_resolution_and_text(spec):
    module = load(spec, random_seed=1)
    flat = spec.wrap(fuse(spec, module, spec.groups(module)))
    tokens = spec.profile.tokens[1]
    profile = {symbol: getattr(spec.profile, symbol) for symbol in SYMBOLS} | {"tokens": (tokens, tokens, 3 * tokens)}
    shapes = dynamic_shapes(spec, profile)
    largest = {symbol: values[2] for symbol, values in profile.items()}
    program = torch.export.export(
        flat, spec.example_inputs(**largest), dynamic_shapes=tuple(shapes[io.name] for io in spec.inputs), strict=False
    )
    for node in program.graph.nodes:
        if node.target is torch.ops.aten.cat.default:
            dtypes = {n.meta["val"].dtype for n in node.args[0]}
            assert len(dtypes) == 1, "a strongly typed network takes no Concat of two dtypes"
        for value in node.meta.values():
            assert getattr(value, "dtype", None) is not torch.float64, f"{node.name}: TensorRT has no f64"
    other = spec.example_inputs(1, 64, 96, tokens=2 * tokens)
    with torch.inference_mode():
        got, want = joined(program.module()(*other)), joined(flat(*other))
    assert got.dtype == spec.torch_dtype
    torch.testing.assert_close(got, want)
