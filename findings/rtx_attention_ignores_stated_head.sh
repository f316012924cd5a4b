#!/usr/bin/env bash
# tensorrt-rtx 1.7.1.116 (CPU only), onnx 1.23.2
#
# Expected: a Reshape of x [n, m, 128] to [n, 2l, 4, -1], with l an axis of another input, has heads of 32: the file's own
#   value_info says so, and ONNX's checker with full_check and its shape inference agree.
# What happens: TensorRT-RTX's parser does not read value_info. Where the length is x's own axis, or another's with the
#   same name, it finds 32; where it is computed, the head's size stays unknown, and Attention is refused as if query, key
#   and value had different ones. With 32 in the place of -1 the same graph is taken.
# Why it matters: cut a graph in two, and a tensor that was computed becomes an input: attention behind the cut no longer
#   parses, though not a node of it has changed. Write sizes that are known as numbers.
source "$(dirname "$0")/common.sh"
install tensorrt-rtx==1.7.1.116 onnx==1.23.2
run_python <<'PY'
from rtx import Parsed
from seen import seen

HEADS = {"query": "target", "key": "stated", "value": "stated"}  # and what each is reshaped to


def model(length: str, last: int) -> str:
    split = "\n".join(
        f"{h}_4 = Reshape (x, {to}) {h}_t = Transpose <perm = [0, 2, 1, 3]> ({h}_4)" for h, to in HEADS.items()
    )
    known = ", ".join(f"float16[n,m,4,32] {h}_4" for h in HEADS)
    return f"""<ir_version: 10, opset_import: ["": 23]>
    g (float16[n,m,128] x, float16[n,l,8] other) => (float16[n,4,m,32] y, float16[n,l,8] z)
    <int64[1] heads = {{4}}, int64[1] rest = {{{last}}}, int64[1] two = {{2}}, int64[1] size = {{32}}, {known}> {{
        n = Shape <start = 0, end = 1> (x)
        {length}
        target = Concat <axis = 0> (n, length, heads, rest)
        stated = Concat <axis = 0> (n, length, heads, size)
        {split}
        y = Attention (query_t, key_t, value_t)
        z = Relu (other)
    }}"""


OWN = "length = Shape <start = 1, end = 2> (x)"
COMPUTED = "l = Shape <start = 1, end = 2> (other) length = Mul (l, two)"
seen("errors with the length of x itself", Parsed(model(OWN, -1)).errors, "")
seen("errors with a computed length and the head's size stated", Parsed(model(COMPUTED, 32)).errors, "")
computed = Parsed(model(COMPUTED, -1))
seen("parsed with a computed length and -1", computed.ok, False)
seen("because", "must have the same head dimension" in computed.errors, True)
PY
