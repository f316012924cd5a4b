"""Attention through torch against the fp64 reference, by the kernel for this GPU."""

from __future__ import annotations

import pytest
import torch

from svdq_trt.contract.archs import ATTENTION_KERNELS
from svdq_trt.contract.attention import ATTENTION_OPS
from svdq_trt.nn import capi
from svdq_trt.nn.attention import apply
from tests.harness.attentions import TORCH_DTYPE, Attention, db

HEAD_SIZES = (64, 72, 128)
#: SQNR in dB against fp64: what rounding q, k, the weights and the output costs, and a margin; a swapped pair, a token
#: too many or a lost head brings it below 30
LIMITS = {"f16": 60.0, "bf16": 42.0}
DTYPES = pytest.mark.parametrize("dtype", list(TORCH_DTYPE))
SIZES = pytest.mark.parametrize("d", HEAD_SIZES)


pytestmark = pytest.mark.usefixtures("svdq")


def check(one: Attention) -> tuple[torch.Tensor, ...]:
    call = one.call("cuda")
    assert capi.supports_attention(call)
    got = apply(call)
    for mine, want in zip(got, one.reference(), strict=True):
        assert mine.shape == want.shape and mine.dtype == TORCH_DTYPE[one.dtype]
        assert db(want, mine) > LIMITS[one.dtype]
    return got


def test_library_has_the_kernels_that_the_table_lists():
    library, (major, minor) = capi.load_library(), torch.cuda.get_device_capability()
    for dtype in (0, 1):
        have = [d for d in range(1, 257) if library.svdq_attention_supports(d, dtype, 10 * major + minor)]
        assert have == list(ATTENTION_KERNELS)


@pytest.mark.parametrize("op", ATTENTION_OPS.values(), ids=list(ATTENTION_OPS))
@DTYPES
@SIZES
def test_every_op_matches_the_reference(op, dtype, d):
    check(Attention(op, dtype, tokens=300, text=77, heads=4, kv_heads=4, d=d, parts=2, part=1))


@pytest.mark.parametrize("op", ["SVDQAttention", "SVDQAttentionCross", "SVDQAttentionJointNormedRotary"])
@pytest.mark.parametrize(("tokens", "text"), [(1, 1), (77, 1), (128, 128), (129, 300), (1025, 77), (256, 1024)])
@SIZES
def test_any_number_of_tokens(op, tokens, text, d):
    check(Attention(ATTENTION_OPS[op], "bf16", b=1, tokens=tokens, text=text, heads=2, kv_heads=2, d=d))


@pytest.mark.parametrize("op", ["SVDQAttentionNormedRotary", "SVDQAttentionCross", "SVDQAttentionJoint"])
@pytest.mark.parametrize(("heads", "kv_heads"), [(8, 2), (6, 1), (5, 5)])
def test_heads_that_share_keys(op, heads, kv_heads):
    check(Attention(ATTENTION_OPS[op], "f16", tokens=200, text=50, heads=heads, kv_heads=kv_heads, d=64))


@pytest.mark.parametrize("op", list(ATTENTION_OPS))
@DTYPES
@SIZES
def test_outlier_channels(op, dtype, d):
    check(Attention(ATTENTION_OPS[op], dtype, tokens=260, text=100, heads=2, kv_heads=2, d=d, outliers=True))


def test_long_rows():
    """More keys than any shared memory holds: FLUX's length and some."""
    op = ATTENTION_OPS["SVDQAttentionJointNormedRotary"]
    check(Attention(op, "bf16", b=1, tokens=4096 + 13, text=512, heads=1, kv_heads=1, d=128))


@pytest.mark.parametrize("part", [0, 1, 4])
def test_any_part_of_shared_keys(part):
    op = ATTENTION_OPS["SVDQAttentionCrossMasked"]
    check(Attention(op, "f16", tokens=130, text=77, heads=2, kv_heads=2, d=64, parts=5, part=part))


@DTYPES
def test_masked_keys_change_nothing(dtype):
    """Whatever stands where the bias is -10000."""
    one = Attention(ATTENTION_OPS["SVDQAttentionCrossMasked"], dtype, tokens=70, text=90, heads=2, kv_heads=2, d=72)
    one.tensors["bias"][:] = 0
    one.tensors["bias"][:, 41:] = -10000.0
    (y,) = check(one)
    call = one.call("cuda")
    call.tensors["kv"][:, 41:] = 7.0
    assert torch.equal(apply(call)[0], y)


@pytest.mark.parametrize("op", ["SVDQAttention", "SVDQAttentionCrossMasked", "SVDQAttentionJointNormedRotary"])
@SIZES
def test_same_input_gives_the_same_bits(op, d):
    call = Attention(ATTENTION_OPS[op], "bf16", tokens=1000, text=300, heads=8, kv_heads=8, d=d).call("cuda")
    first = apply(call)
    for _ in range(20):
        assert all(torch.equal(a, b) for a, b in zip(apply(call), first, strict=True))


@pytest.mark.parametrize("op", ["SVDQAttentionNormedRotary", "SVDQAttentionCross", "SVDQAttentionJointNormedRotary"])
def test_cuda_graph_replays_on_new_inputs(op):
    made = [Attention(ATTENTION_OPS[op], "f16", tokens=200, text=77, heads=4, kv_heads=4, d=64, seed=s) for s in (0, 1)]
    call, other = (one.call("cuda") for one in made)
    apply(call)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = apply(call)
    for name, tensor in call.tensors.items():
        tensor.copy_(other.tensors[name])
    graph.replay()
    assert all(torch.equal(a, b) for a, b in zip(captured, apply(other), strict=True))


def test_head_size_without_a_kernel_is_torchs():
    one = Attention(ATTENTION_OPS["SVDQAttentionRotary"], "f16", tokens=100, heads=2, kv_heads=2, d=136)
    call = one.call("cuda")
    assert not capi.supports_attention(call)
    assert db(one.reference()[0], apply(call)[0]) > LIMITS["f16"]


def test_nan_stays_in_its_batch():
    call = Attention(ATTENTION_OPS["SVDQAttention"], "f16", tokens=200, heads=2, kv_heads=2, d=64).call("cuda")
    call.tensors["qkv"][0, 5, 3] = torch.nan  # of a query: its row of one head
    (y,) = apply(call)
    assert bool(y[0, 5, :64].isnan().all()) and bool(y[1].isfinite().all())
