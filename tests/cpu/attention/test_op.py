"""The attention ops: the table, the reference against a plain softmax, the torch ops against the reference."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn

from svdq_trt.base.errors import ShapeError
from svdq_trt.contract.attention import ATTENTION_OPS, AttentionSettings
from svdq_trt.nn import attention
from svdq_trt.nn.attention import Call, apply
from tests.harness.attentions import TORCH_DTYPE, Attention, db

ALL = pytest.mark.parametrize("op", ATTENTION_OPS.values(), ids=list(ATTENTION_OPS))
#: dtype -> SQNR in dB against fp64: what rounding q, k and the output costs; f32 shows the order of sums
LIMITS = {torch.float16: 68, torch.bfloat16: 50, torch.float32: 120}


def test_table_is_the_ten_ops_with_inputs_in_order():
    assert list(ATTENTION_OPS) == [
        *(f"SVDQAttention{options}" for options in ("", "Normed", "Rotary", "NormedRotary")),
        *(f"SVDQAttentionCross{options}" for options in ("", "Masked")),
        *(f"SVDQAttentionJoint{options}" for options in ("", "Normed", "Rotary", "NormedRotary")),
    ]
    inputs = {name: " ".join(t.name for t in op.inputs) for name, op in ATTENTION_OPS.items()}
    norms = "q_norm k_norm added_q_norm added_k_norm"
    assert inputs["SVDQAttentionNormedRotary"] == "qkv q_norm k_norm cos sin"
    assert inputs["SVDQAttentionCrossMasked"] == "q kv bias"
    assert inputs["SVDQAttentionJointNormedRotary"] == f"qkv added_qkv {norms} cos sin"
    attributes = {name: " ".join(a.name for a in op.attributes) for name, op in ATTENTION_OPS.items()}
    assert attributes["SVDQAttentionRotary"] == "heads kv_heads scale"
    assert attributes["SVDQAttentionCross"] == "heads kv_heads kv_part scale"
    assert attributes["SVDQAttentionJointNormed"] == "heads kv_heads scale eps"
    assert [len(op.outputs) for op in ATTENTION_OPS.values()] == [1] * 6 + [2] * 4


def test_reference_is_softmax_of_scaled_products_by_heads_that_share_keys():
    """By loops over tokens, for grouped heads, the second of three parts and a bias."""
    one = Attention(ATTENTION_OPS["SVDQAttentionCrossMasked"], heads=4, kv_heads=2, d=8, parts=3, part=1)
    (y,) = one.reference()
    q, kv, bias = (one.tensors[name].astype(np.float64) for name in ("q", "kv", "bias"))
    for head, keys in ((0, 0), (1, 0), (2, 1), (3, 1)):
        start = 32 + 8 * keys  # a part has 2 heads of keys, then 2 of values, of 8 each
        for token in range(one.tokens):
            logits = [
                q[1, token, 8 * head : 8 * head + 8] @ kv[1, t, start : start + 8] / np.sqrt(8) + bias[1, t]
                for t in range(one.text)
            ]
            weights = np.exp(logits) / np.exp(logits).sum()
            want = sum(w * kv[1, t, start + 16 : start + 24] for t, w in enumerate(weights))
            np.testing.assert_allclose(y[1, token, 8 * head : 8 * head + 8], want, rtol=1e-12)


@ALL
@pytest.mark.parametrize("dtype", LIMITS, ids=["f16", "bf16", "f32"])
def test_torch_op_matches_the_reference(op, dtype):
    one = Attention(op, "bf16" if dtype is torch.bfloat16 else "f16", parts=3, part=1)
    if dtype is torch.float32:
        one.tensors.update({n: t.astype(np.float32) for n, t in one.tensors.items()})
    got, want = one.run(dtype=dtype), one.reference()
    assert [tuple(y.shape) for y in got] == [y.shape for y in want] and got[0].dtype == dtype
    for mine, true in zip(got, want, strict=True):
        assert db(true, mine) > LIMITS[dtype]


@ALL
@pytest.mark.parametrize("dtype", TORCH_DTYPE.values(), ids=list(TORCH_DTYPE))
def test_fake_gives_the_shapes_and_dtype_of_the_outputs(op, dtype):
    one = Attention(op)
    call = one.call(dtype=dtype)
    want = apply(call)
    got = apply(Call(op, {name: t.to("meta") for name, t in call.tensors.items()}, one.settings))
    assert [(y.shape, y.dtype) for y in got] == [(y.shape, y.dtype) for y in want]


def test_torch_checks_the_ops():
    """torch's own checks of an operator: its schema, its fake, no output that shares memory."""
    for name in ("SVDQAttentionCrossMasked", "SVDQAttentionJointNormedRotary"):
        call = Attention(ATTENTION_OPS[name], b=1).call()
        names = attention._JOINT if "Joint" in name else attention._ALONE
        op = attention.joint_attention if "Joint" in name else attention.attention
        tensors = [call.first, *(call.tensors.get(n) for n in names[1:])]
        numbers = [getattr(call.settings, a.name) for a in attention._NUMBERS]
        torch.library.opcheck(op, (*tensors, *numbers), test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize(
    ("op", "change", "message"),
    [
        ("SVDQAttentionRotary", {"cos": (8, 16)}, "input cos: .8, 16., want .9, 16., .S, D.*"),
        ("SVDQAttentionJoint", {"added_qkv": (1, 5, 128)}, "input added_qkv: .1, 5, 128., want .2, 5, 128.*"),
        ("SVDQAttentionNormed", {"q_norm": (15,)}, "input q_norm: .15., want .16.*"),
        ("SVDQAttentionCrossMasked", {"bias": (2, 6)}, "input bias: .2, 6., want .2, 5.*"),
        ("SVDQAttentionCross", {"kv": (2, 5, 63)}, "input kv.*"),
        ("SVDQAttention", {"qkv": (2, 9, 4 * 12 + 4 * 12)}, ".*want heads of a multiple of 8.*"),
    ],
)
def test_inputs_that_do_not_fit_are_refused(op, change, message):
    call = Attention(ATTENTION_OPS[op]).call()
    tensors = call.tensors | {name: torch.zeros(shape, dtype=torch.float16) for name, shape in change.items()}
    with pytest.raises(ShapeError, match=message):
        apply(dataclasses.replace(call, tensors=tensors))


@pytest.mark.parametrize(
    "settings", [AttentionSettings(4, 3, 0.25), AttentionSettings(0, 1, 0.25), AttentionSettings(4, 2, 0.25, kv_part=1)]
)
def test_settings_that_cannot_be_are_refused(settings):
    call = Attention(ATTENTION_OPS["SVDQAttentionCross"]).call()
    with pytest.raises(ShapeError):
        apply(dataclasses.replace(call, settings=settings))


def test_norms_other_than_rms_norms_of_a_head_are_left_to_torch():
    attn = nn.Module()
    attn.inner_dim, attn.heads, attn.to_qkv = 64, 4, nn.Identity()  # type: ignore[assignment]
    assert attention._norms(attn) == {}
    attn.norm_q, attn.norm_k = nn.RMSNorm(16, eps=1e-6), nn.RMSNorm(16, eps=1e-6)
    assert list(attention._norms(attn)) == ["q_norm", "k_norm"]
    for other in (nn.LayerNorm(16), nn.RMSNorm(64, eps=1e-6), nn.RMSNorm(16, eps=1e-5), None):
        attn.norm_k = other
        assert attention._norms(attn) is None
