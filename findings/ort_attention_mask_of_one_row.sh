#!/usr/bin/env bash
# onnxruntime 1.32.0 (CPU), onnx 1.23.2
#
# Expected: ONNX's Attention (opset 23) takes a mask that broadcasts to [batch, heads, queries, keys]. A padding mask is the
#   same for all queries, so one row, [batch, 1, 1, keys], is enough, as for torch and for the reference evaluator.
# What happens: ONNX Runtime broadcasts the mask along batch and heads, not along queries: it refuses to run with a mask of
#   one row. With as many equal rows as there are queries the result is the reference's.
# Why it matters: torch.export keeps the mask of one row that transformers and diffusers make, so the exported file passes
#   the checker and the reference, and fails in ONNX Runtime. Expand the mask in the graph, in front of Attention.
source "$(dirname "$0")/common.sh"
install onnx==1.23.2 onnxruntime==1.32.0 numpy==2.4.6
run_python <<'PY'
import numpy as np
import onnx.parser
import onnxruntime as ort
from onnx.reference import ReferenceEvaluator
from seen import seen

B, H, L, S, D = 2, 3, 5, 7, 8
rng = np.random.default_rng(0)
FEED = {n: rng.standard_normal((B, H, rows, D), dtype=np.float32) for n, rows in (("q", L), ("k", S), ("v", S))}
KEPT = np.where(np.arange(S) < 5, 0, -1e4).astype(np.float32)


def run(shape):
    """Attention with the padding mask in that shape: the largest difference from the reference, or the refusal."""
    dims = ", ".join(map(str, shape))
    text = f"""<ir_version: 10, opset_import: ["": 23]>
        g (float[B, H, L, D] q, float[B, H, S, D] k, float[B, H, S, D] v, float[{dims}] mask) => (float[B, H, L, D] y)
        {{ y = Attention (q, k, v, mask) }}"""
    model = onnx.parser.parse_model(text)
    onnx.checker.check_model(model)
    feed = FEED | {"mask": np.broadcast_to(KEPT, shape).copy()}
    want = ReferenceEvaluator(model).run(None, feed)[0]
    try:
        got = ort.InferenceSession(model.SerializeToString()).run(None, feed)[0]
    except ort.capi.onnxruntime_pybind11_state.Fail as error:
        return f"refused: {str(error).rpartition(' was false. ')[2].strip()}"
    return "as the reference" if np.abs(got - want).max() < 1e-4 else "something else"


for shape in ((1, 1, L, S), (B, 1, L, S), (B, H, L, S)):
    seen(f"mask {list(shape)}", run(shape), "as the reference")
for shape in ((B, 1, 1, S), (1, 1, 1, S), (B, H, 1, S)):
    seen(f"mask {list(shape)}", run(shape), "refused: inconsistent q_sequence_length (between attn_mask and Q)")
PY
