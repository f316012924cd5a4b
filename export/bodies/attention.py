"""Function bodies of the attention ops, in standard operators and f32; see svdq_trt/contract/attention.py.

Numbers of heads are attributes, so shapes are put together from them. Keys and values shared by several heads get an
axis of their own, which MatMul broadcasts. Letters as in the contract; G heads share a key/value head.
"""

from __future__ import annotations

import onnx_ir as ir

from svdq_export.bodies.build import Body
from svdq_trt.contract.attention import AttentionOp, Source


def attention(b: Body, op: AttentionOp, inputs: dict[str, ir.Value]) -> list[ir.Value]:
    """The outputs of `op`: y [B, L, H·D], in Joint also added_y [B, T, H·D]."""
    h, kv = b.int_attribute("heads"), b.int_attribute("kv_heads")
    first = next(iter(inputs.values()))
    if op.source is Source.CROSS:
        q = _heads(b, inputs["q"], h)
        both = b("Reshape", inputs["kv"], b("Concat", b.ints(0, 0, -1), b("Shape", q, start=3), axis=0))
        start = b("Mul", b("Mul", b.int_attribute("kv_part"), b.ints(2)), kv)
        part = b("Slice", both, start, b("Add", start, b("Mul", kv, b.ints(2))), b.ints(2))
        k, v = b.several("Split", [part, b("Concat", kv, kv, axis=0)], 2, axis=2)
    else:
        names = ("added_qkv", "qkv") if op.source is Source.JOINT else ("qkv",)
        streams = [_stream(b, op, inputs, name, h, kv) for name in names]
        q, k, v = (t[0] if len(t) == 1 else b("Concat", *t, axis=1) for t in zip(*streams, strict=True))
    if op.rotary:
        q, k = (_turned(b, t, inputs["cos"], inputs["sin"]) for t in (q, k))
    if op.normed or op.rotary:
        q, k = (b("CastLike", t, first) for t in (q, k))  # rounded once, as the kernels do
    q, k, v = (b.to_f32(t) for t in (q, k, v))
    y = b("CastLike", _softmax_product(b, q, k, v, inputs.get("bias"), kv), first)
    if op.source is not Source.JOINT:
        return [y]
    added = b("Shape", inputs["added_qkv"], start=1, end=2)
    everything = b("Concat", added, b("Shape", inputs["qkv"], start=1, end=2), axis=0)
    added_y, y = b.several("Split", [y, everything], 2, axis=1)
    return [y, added_y]


def _heads(b: Body, x: ir.Value, heads: ir.Value) -> ir.Value:
    """[B, tokens, heads·D] -> [B, tokens, heads, D]."""
    return b("Reshape", x, b("Concat", b.ints(0, 0), heads, b.ints(-1), axis=0))


def _stream(
    b: Body, op: AttentionOp, inputs: dict[str, ir.Value], name: str, h: ir.Value, kv: ir.Value
) -> tuple[ir.Value, ir.Value, ir.Value]:
    """q, k, v of one stream, [B, tokens, heads, D] each; q and k normed, in f32, where the op says so."""
    whole = _heads(b, inputs[name], b("Add", h, b("Mul", kv, b.ints(2))))
    q, k, v = b.several("Split", [whole, b("Concat", h, kv, kv, axis=0)], 3, axis=2)
    if op.normed:
        prefix = name.removesuffix("qkv")
        q, k = (_normed(b, t, inputs[f"{prefix}{n}_norm"]) for t, n in ((q, "q"), (k, "k")))
    return q, k, v


def _normed(b: Body, x: ir.Value, weight: ir.Value) -> ir.Value:
    x = b.to_f32(x)
    mean = b("ReduceMean", b("Mul", x, x), b.ints(-1), keepdims=1)
    root = b("Sqrt", b("Add", mean, b.attribute("eps", "float")))
    return b("Mul", b("Div", x, root), b.to_f32(weight))


def _turned(b: Body, x: ir.Value, cos: ir.Value, sin: ir.Value) -> ir.Value:
    """Pairs (a, b) of x [B, S, heads, D] -> (a·cos - b·sin, b·cos + a·sin), in f32."""
    x = b.to_f32(x)
    pairs = b("Reshape", x, b.ints(0, 0, 0, -1, 2))
    even, odd = b.several("Split", [pairs], 2, axis=-1, num_outputs=2)
    turned = b("Reshape", b("Concat", b("Neg", odd), even, axis=-1), b("Shape", x))
    by_head = b.ints(1)
    cos, sin = (b("Unsqueeze", t, by_head) for t in (cos, sin))
    return b("Add", b("Mul", x, cos), b("Mul", turned, sin))


def _softmax_product(b: Body, q: ir.Value, k: ir.Value, v: ir.Value, bias: ir.Value | None, kv: ir.Value) -> ir.Value:
    """[B, queries, H, D], [B, keys, Hkv, D] twice, bias [B, keys] -> [B, queries, H·D]; all f32."""
    shared = b("Concat", b.ints(0, 0), kv, b.ints(-1), b("Shape", q, start=3), axis=0)
    q = b("Transpose", b("Reshape", q, shared), perm=[0, 2, 3, 1, 4])  # [B, Hkv, G, queries, D]
    one = b.ints(2)
    k = b("Unsqueeze", b("Transpose", k, perm=[0, 2, 3, 1]), one)  # [B, Hkv, 1, D, keys]
    v = b("Unsqueeze", b("Transpose", v, perm=[0, 2, 1, 3]), one)  # [B, Hkv, 1, keys, D]
    logits = b("Mul", b("MatMul", q, k), b.attribute("scale", "float"))
    if bias is not None:
        logits = b("Add", logits, b("Unsqueeze", b.to_f32(bias), b.ints(1, 2, 3)))
    y = b("MatMul", b("Softmax", logits, axis=-1), v)
    return b("Reshape", b("Transpose", y, perm=[0, 3, 1, 2, 4]), b.ints(0, 0, -1))
