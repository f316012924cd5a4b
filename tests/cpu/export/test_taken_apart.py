"""What is joined and taken apart again, or transposed and back, is not in the graph; anything else stays."""

import numpy as np
import onnx
import onnx_ir as ir
import onnx_ir.passes.common as passes
import pytest
from onnx.reference import ReferenceEvaluator

from svdq_export.passes.pixels import pixels_to_tokens
from svdq_export.passes.unjoin import unjoin_slices

SIZES = {"A": (2, 5, 4), "B": (2, 5, 6), "P": (2, 3, 5, 4)}


def model(text: str, inputs: str, outputs: int) -> ir.Model:
    """A graph of `inputs`, whose first two axes but the channels' are dynamic, and outputs Y0, Y1, ..."""
    dims = {"A": "float[N, L, 4] A", "B": "float[N, L, 6] B", "P": "float[N, H, W, 4] P"}
    values = ", ".join(f"float[?, ?, ?] Y{i}" for i in range(outputs))
    given = ", ".join(dims[name] for name in inputs)
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 23]> main ({given}) => ({values}) {{ {text} }}'.replace("?", "M")
    )
    for out in proto.graph.output:  # of any shape
        out.type.tensor_type.ClearField("shape")
    found = ir.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True))
    passes.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=0)(found)
    return found


def ran(graph: ir.Model) -> list[np.ndarray]:
    proto = ir.to_proto(graph)
    rng = np.random.default_rng(0)
    feed = {v.name: rng.standard_normal(SIZES[v.name], np.float32) for v in proto.graph.input}
    return ReferenceEvaluator(proto).run(None, feed)


def ops(graph: ir.Model) -> list[str]:
    return [node.op_type for node in graph.graph]


def changed(graph: ir.Model, change, count: int) -> list[str]:
    """The op types after a pass that makes `count` changes and keeps the results."""
    want = ran(graph)
    assert change(graph) == count
    for one, other in zip(ran(graph), want, strict=True):
        np.testing.assert_array_equal(one, other)
    return ops(graph)


def sliced(source: str, start: int, stop: int, out: str, axis: int = -1) -> str:
    ints = {"s": start, "e": stop, "a": axis}
    constants = " ".join(f"{out}{k} = Constant<value = int64[1] {{{v}}}>()" for k, v in ints.items())
    return f"{constants} {out} = Slice({source}, {out}s, {out}e, {out}a)"


@pytest.mark.parametrize(
    "text,outputs,count,left",
    [
        (f"C = Concat<axis = -1>(A, B) {sliced('C', 0, 4, 'Y0', 2)} {sliced('C', 4, 1 << 62, 'Y1')}", 2, 2, []),
        (f"C = Concat<axis = 2>(A, B, A) {sliced('C', 4, 14, 'Y0')}", 1, 1, ["Concat"]),
        (
            f"C = Concat<axis = -1>(A, B) {sliced('C', 0, 4, 'D')} Y0 = Neg(D) Y1 = Neg(C)",
            2,
            1,
            ["Concat", "Neg", "Neg"],
        ),
        (f"C = Concat<axis = -1>(A, B) {sliced('C', 0, 3, 'Y0')}", 1, 0, ["Concat", "Slice"]),
        (f"C = Concat<axis = -1>(A, B) {sliced('C', 0, 1, 'Y0', 1)}", 1, 0, ["Concat", "Slice"]),
        (f"C = Concat<axis = 1>(A, A) {sliced('C', 0, 5, 'Y0', 1)}", 1, 0, ["Concat", "Slice"]),
        (
            "C = Concat<axis = -1>(A, B, B) S = Constant<value = int64[2] {4, 12}>() "
            "D, E = Split<axis = -1>(C, S) Y0 = Neg(D) Y1 = Neg(E)",
            2,
            1,
            ["Concat", "Neg", "Neg"],
        ),
        (
            "C = Concat<axis = -1>(A, B) S = Constant<value = int64[2] {5, 5}>() Y0, Y1 = Split<axis = -1>(C, S)",
            2,
            0,
            ["Concat", "Split"],
        ),
    ],
    ids=["parts", "several", "kept", "inside", "other axis", "dynamic", "split", "split inside"],
)
def test_slices_of_a_concatenation(text, outputs, count, left):
    assert changed(model(text, "AB", outputs), unjoin_slices, count) == left


@pytest.mark.parametrize(
    "perm,shape,count",
    [("0, 3, 1, 2", "0, 4, -1", 1), ("0, 3, 2, 1", "0, 4, -1", 0), ("0, 3, 1, 2", "0, -1, 5", 0)],
    ids=["tokens", "turned", "other"],
)
def test_pixels_to_channels_and_back_to_tokens(perm, shape, count):
    text = (
        f"C = Transpose<perm = [{perm}]>(P) S = Constant<value = int64[3] {{{shape}}}>() "
        "T = Reshape(C, S) U = Transpose<perm = [0, 2, 1]>(T) Y0 = Neg(U)"
    )
    left = ["Reshape", "Neg"] if count else ["Transpose", "Reshape", "Transpose", "Neg"]
    assert changed(model(text, "P", 1), pixels_to_tokens, count) == left
