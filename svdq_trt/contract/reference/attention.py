"""The reference attention: fp64, one head after the other. Slow, obvious, no options beyond the op contract."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from svdq_trt.contract.attention import AttentionOp, AttentionSettings, Source
from svdq_trt.contract.reference.quant import Array

_F64 = NDArray[np.float64]


def attention_unrounded(op: AttentionOp, tensors: Mapping[str, Array], settings: AttentionSettings) -> tuple[_F64, ...]:
    """The outputs of `op` before their one rounding to the act dtype.

    Args:
        tensors: the op's inputs by name, of the shapes in svdq_trt/contract/attention.py.

    Returns:
        y [B, L, H·D]; in Joint also added_y [B, T, H·D].
    """
    h, kv = settings.heads, settings.kv_heads
    if op.source is Source.CROSS:
        q = _heads(tensors["q"], tensors["q"].shape[-1] // h)
        both = _heads(tensors["kv"], q.shape[-1])[:, :, settings.kv_part * 2 * kv :][:, :, : 2 * kv]
        k, v = both[:, :, :kv], both[:, :, kv:]
    else:
        names = ("added_qkv", "qkv") if op.source is Source.JOINT else ("qkv",)
        parts = [_stream(op, tensors, name, settings) for name in names]
        q, k, v = (np.concatenate(streams, axis=1) for streams in zip(*parts, strict=True))
    if op.rotary:
        q, k = (_rotated(t, tensors["cos"], tensors["sin"]) for t in (q, k))
    act = tensors[op.inputs[0].name].dtype
    if op.normed or op.rotary:
        q, k = (t.astype(act).astype(np.float64) for t in (q, k))  # rounded once
    bias = tensors["bias"].astype(np.float64)[:, None] if "bias" in tensors else 0.0  # [B, 1, T]
    y = np.stack([_one_head(q[:, :, i], k[:, :, j], v[:, :, j], settings.scale, bias) for i, j in _pairs(h, kv)], 2)
    y = y.reshape(*y.shape[:2], -1)
    if op.source is not Source.JOINT:
        return (y,)
    added = tensors["added_qkv"].shape[1]
    return y[:, added:], y[:, :added]


def _pairs(heads: int, kv_heads: int) -> list[tuple[int, int]]:
    """Each head and the key/value head that it reads: neighbours share one."""
    return [(i, i * kv_heads // heads) for i in range(heads)]


def _heads(x: Array, d: int) -> _F64:
    """[B, tokens, n·D] -> [B, tokens, n, D]."""
    return x.astype(np.float64).reshape(*x.shape[:2], -1, d)


def _stream(
    op: AttentionOp, tensors: Mapping[str, Array], name: str, settings: AttentionSettings
) -> tuple[_F64, _F64, _F64]:
    """q, k, v of one stream, [B, tokens, heads, D] each, normed where the op says so."""
    h, kv = settings.heads, settings.kv_heads
    x = _heads(tensors[name], tensors[name].shape[-1] // (h + 2 * kv))
    q, k, v = x[:, :, :h], x[:, :, h : h + kv], x[:, :, h + kv :]
    if op.normed:
        prefix = name.removesuffix("qkv")
        q, k = (_normed(t, tensors[f"{prefix}{n}_norm"], settings.eps) for t, n in ((q, "q"), (k, "k")))
    return q, k, v


def _normed(x: _F64, weight: Array, eps: float) -> _F64:
    return x / np.sqrt(np.mean(x**2, -1, keepdims=True) + eps) * weight.astype(np.float64)


def _rotated(x: _F64, cos: Array, sin: Array) -> _F64:
    """Pairs (a, b) -> (a·cos - b·sin, b·cos + a·sin)."""
    turned = np.empty_like(x)
    turned[..., 0::2], turned[..., 1::2] = -x[..., 1::2], x[..., 0::2]
    return x * cos.astype(np.float64)[:, None] + turned * sin.astype(np.float64)[:, None]


def _one_head(q: _F64, k: _F64, v: _F64, scale: float, bias: _F64 | float) -> _F64:
    """[B, queries, D], [B, keys, D] twice -> [B, queries, D]."""
    logits = scale * (q @ k.transpose(0, 2, 1)) + bias
    weights = np.exp(logits - logits.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True) @ v
