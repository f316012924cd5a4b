"""An engine folder small enough to know every bit of what it answers: y = 2 x t + ids, ids without a batch axis."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes  # noqa: F401 (numpy's "bfloat16")
import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.harness.manifests import file_entry, tensor_entry, write_manifest


def write_toy(
    folder: Path,
    dtype: str = "float16",
    backend: str = "tensorrt-rtx",
    batch: tuple[int, int, int] = (1, 2, 4),
    ids: bool = False,
) -> Path:
    """x [batch, 8..32] of `dtype`, t [batch] f32, and with `ids` ids [8..32] as x, to be added -> y as x.

    The weights lie in model.onnx.data, as an engine's do. The plan and the plugin are bytes that nothing runs.
    """
    folder.mkdir(parents=True, exist_ok=True)
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    nodes = [
        helper.make_node("Cast", ["t"], ["t16"], to=kind),
        helper.make_node("Constant", [], ["axis"], value_ints=[1]),
        helper.make_node("Unsqueeze", ["t16", "axis"], ["t2"]),
        helper.make_node("Mul", ["x", "t2"], ["xt"]),
        helper.make_node("Mul", ["xt", "two"], ["2xt" if ids else "y"]),
        *([helper.make_node("Add", ["2xt", "ids"], ["y"])] if ids else []),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "toy",
        [
            value("x", kind, ["b", "n"]),
            value("t", onnx.TensorProto.FLOAT, ["b"]),
            *([value("ids", kind, ["n"])] if ids else []),
        ],
        [value("y", kind, ["b", "n"])],
        [numpy_helper.from_array(np.array([2], dtype), "two")],
    )
    data = "model.onnx.data"
    (folder / data).unlink(missing_ok=True)  # onnx appends
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10),
        folder / "model.onnx",
        save_as_external_data=True,
        location=data,
        size_threshold=0,
    )
    for name, content in (("model.plan", b"plan"), ("libsvdq_trt_plugin.so", b"plugin")):
        (folder / name).write_bytes(content)
    width = (8, 16, 32)
    write_manifest(
        folder,
        model="toy",
        backend={"name": backend, "version": "1.2.3"},
        plan=file_entry(folder / "model.plan"),
        plugin=file_entry(folder / "libsvdq_trt_plugin.so", version="1.0.0"),
        onnx={"file": "model.onnx", "bytes": sum((folder / n).stat().st_size for n in ("model.onnx", data))},
        inputs=[
            tensor_entry("x", dtype, batch, width),
            tensor_entry("t", "float32", batch),
            *([tensor_entry("ids", dtype, width)] if ids else []),
        ],
        outputs=[tensor_entry("y", dtype, batch, width)],
    )
    return folder


def toy_feed(batch: int = 1, width: int = 8, seed: int = 0, dtype: str = "float16") -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, t = rng.integers(-8, 9, (batch, width)), rng.integers(1, 9, batch)  # products are exact in every dtype
    return {"x": x.astype(dtype), "t": t.astype(np.float32)}


def toy_answer(inputs: dict[str, np.ndarray]) -> np.ndarray:
    answer: np.ndarray = 2 * inputs["x"].astype(np.float32) * inputs["t"].reshape(-1, 1)
    return answer + inputs["ids"] if "ids" in inputs else answer
