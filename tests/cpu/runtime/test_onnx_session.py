"""The ONNX file of an engine folder in ONNX Runtime: same interface and refusals as Session."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from svdq_export import write_float32_twin
from svdq_trt.base.errors import ArtifactError, ShapeError, SvdqError, UnsupportedError
from svdq_trt.build.finish import finish
from svdq_trt.runtime import OnnxSession
from tests.harness.manifests import change_manifest, file_entry, tensor_entry

WEIGHT = np.random.default_rng(0).standard_normal((8, 8))


def write_model(path: Path, dtype: type = np.float16) -> Path:
    """y = x W + t: x [b, 8], t [b, 1] f32, y [b, 8]."""
    act = np.dtype(dtype)
    kind = helper.np_dtype_to_tensor_dtype(act)
    nodes = [
        helper.make_node("Cast", ["t"], ["t16"], to=kind),
        helper.make_node("MatMul", ["x", "w"], ["xw"]),
        helper.make_node("Add", ["xw", "t16"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [
            helper.make_tensor_value_info("x", kind, ["b", 8]),
            helper.make_tensor_value_info("t", onnx.TensorProto.FLOAT, ["b", 1]),
        ],
        [helper.make_tensor_value_info("y", kind, ["b", 8])],
        [numpy_helper.from_array(WEIGHT.astype(act), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    return path


@pytest.fixture
def engine(folder):
    """The engine folder with a real model.onnx; inputs x [1..4, 8] and t [1..4, 1]."""
    size = write_model(folder / "model.onnx").stat().st_size
    change_manifest(
        folder,
        onnx={"file": "model.onnx", "bytes": size},
        inputs=[
            tensor_entry("x", "float16", (1, 2, 4), (8, 8, 8)),
            tensor_entry("t", "float32", (1, 2, 4), (1, 1, 1)),
        ],
    )
    return folder


def feed(rows: int = 2, dtype: type = np.float16, seed: int = 1) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {"x": rng.standard_normal((rows, 8)).astype(dtype), "t": rng.standard_normal((rows, 1)).astype(np.float32)}


def expected(given: dict[str, np.ndarray]) -> np.ndarray:
    return given["x"].astype(np.float64) @ WEIGHT + given["t"]


def test_engine_folder_runs_without_its_plan(engine):
    (engine / "model.plan").unlink()
    with OnnxSession(engine) as session:
        got = session.run(feed(3))
    assert session.manifest.model == session.model == "sdxl-tiny" and session.output_names == ["y"]
    assert got["y"].dtype == np.float16
    np.testing.assert_allclose(got["y"], expected(feed(3)), atol=0.02)


def test_torch_in_torch_out(engine):
    session = OnnxSession(engine, device="cpu")
    want = session.run(feed())["y"]
    got = session.run({name: torch.from_numpy(value) for name, value in feed().items()})["y"]
    assert isinstance(want, np.ndarray) and got.dtype == torch.float16
    assert np.array_equal(got.numpy(), want)


def test_profile_and_dtypes_are_the_manifests(engine):
    session = OnnxSession(engine)
    with pytest.raises(ShapeError, match=r"input 'x': shape \[5, 8\], want \[1..4, 8\]"):
        session.run(feed(5))
    with pytest.raises(ShapeError, match="input 'x': float32, want float16"):
        session.run(feed(dtype=np.float32))
    with pytest.raises(ShapeError, match="input 't': missing"):
        session.run({"x": feed()["x"]})
    with pytest.raises(ShapeError, match="input 't': b 3, want 2, as in 'x'"):  # the graph's own name
        session.run(feed() | {"t": np.zeros((3, 1), np.float32)})


def test_a_file_alone_has_open_dimensions(tmp_path):
    session = OnnxSession(write_model(tmp_path / "m.onnx"))
    assert session.manifest is None and session.model == ""
    np.testing.assert_allclose(session.run(feed(9))["y"], expected(feed(9)), atol=0.02)
    with pytest.raises(ShapeError, match=r"shape \[2, 7\], want \[1\.\., 8\]"):
        session.run(feed() | {"x": np.zeros((2, 7), np.float16)})


def test_bfloat16_runs_as_its_float32_twin(tmp_path):
    path, bf16 = write_model(tmp_path / "m.onnx", ml_dtypes.bfloat16), ml_dtypes.bfloat16
    session = OnnxSession(path)
    assert session.path == path and session.inputs[0].dtype == "bfloat16"
    given = feed(dtype=bf16)
    got = session.run(given)["y"]
    exact = given["x"].astype(np.float64) @ WEIGHT.astype(bf16).astype(np.float64) + given["t"]
    assert got.dtype == bf16
    np.testing.assert_allclose(got.astype(np.float64), exact, rtol=2**-8, atol=1e-3)
    tensors = {"x": torch.from_numpy(given["x"].astype(np.float32)).bfloat16(), "t": torch.from_numpy(given["t"])}
    again = session.run(tensors)["y"]
    assert again.dtype == torch.bfloat16 and np.array_equal(again.float().numpy(), got.astype(np.float32))
    assert [p.name for p in tmp_path.iterdir()] == ["m.onnx"]


def test_a_bfloat16_model_put_in_anothers_place_is_the_one_that_runs(tmp_path):
    """Builds reuse stages, so the new model may be the older file: what was made from the other one is not trusted."""
    bf16 = ml_dtypes.bfloat16
    path = write_model(tmp_path / "model.onnx", bf16)
    OnnxSession(path).close()
    write_float32_twin(path)  # earlier releases left it there
    other = onnx.load(path)
    other.graph.initializer[0].CopyFrom(numpy_helper.from_array((2 * WEIGHT).astype(bf16), "w"))
    onnx.save(other, path, save_as_external_data=True, location="model.onnx.data", size_threshold=16)
    os.utime(path, ns=(1, 1))
    given = feed(dtype=bf16)
    got = OnnxSession(path).run(given)["y"].astype(np.float64)
    weight = (2 * WEIGHT).astype(bf16).astype(np.float64)
    np.testing.assert_allclose(got, given["x"].astype(np.float64) @ weight + given["t"], rtol=2**-7, atol=0.01)


@pytest.mark.parametrize("damaged", ["model.onnx", "model.onnx.data"])
def test_a_damaged_file_of_the_right_size_is_refused(engine, damaged):
    path, data = engine / "model.onnx", engine / "model.onnx.data"
    model = onnx.load(path)
    onnx.save(model, path, save_as_external_data=True, location=data.name, size_threshold=16)
    entry = file_entry(path) | {"bytes": path.stat().st_size + data.stat().st_size, "data": file_entry(data)}
    change_manifest(engine, onnx=entry)
    OnnxSession(engine).close()
    content = bytearray((engine / damaged).read_bytes())
    content[len(content) // 2] ^= 1
    (engine / damaged).write_bytes(content)
    with pytest.raises(ArtifactError, match=rf"{damaged}: another SHA-256 than the manifest's, want \w+\. Copy the"):
        OnnxSession(engine)
    with pytest.raises(ArtifactError, match=f"{damaged}: another SHA-256"):
        finish(engine, "auto")
    (engine / damaged).unlink()
    with pytest.raises(ArtifactError, match=f"{damaged}: missing, want the file that the manifest names"):
        OnnxSession(engine)


def test_threads_share_a_session(engine):
    session, failures = OnnxSession(engine, threads=1), []

    def work(seed: int) -> None:
        for i in range(20):
            given = feed(1 + i % 4, seed=seed)
            if not np.allclose(session.run(given)["y"], expected(given), atol=0.02):
                failures.append((seed, i))

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_refuses_what_is_not_there(engine, tmp_path):
    (tmp_path / "x.onnx").write_bytes(b"\xff\xff\xff\xff")
    (tmp_path / "empty.onnx").write_bytes(b"")
    for path in ("x.onnx", "empty.onnx", "none.onnx", "no-folder"):
        with pytest.raises(ArtifactError, match=path):
            OnnxSession(tmp_path / path)
    with pytest.raises(UnsupportedError, match="device: 'tpu', want auto, cpu, cuda"):
        OnnxSession(engine, device="tpu")
    with (engine / "model.onnx").open("ab") as file:
        file.write(b"x")
    with pytest.raises(ArtifactError, match=r"model\.onnx: \d+ bytes, want"):
        OnnxSession(engine)


def test_missing_weights_are_named(tmp_path):
    path = write_model(tmp_path / "m.onnx")
    onnx.save(onnx.load(path), path, save_as_external_data=True, location="m.onnx.data", size_threshold=0)
    OnnxSession(path)
    (tmp_path / "m.onnx.data").unlink()
    with pytest.raises(ArtifactError, match=r"m\.onnx\.data: missing, want the weights of m\.onnx\. Copy it there"):
        OnnxSession(path)


def test_closed_session_says_so(engine):
    session = OnnxSession(engine)
    session.close()
    session.close()
    with pytest.raises(SvdqError, match="a closed session"):
        session.run(feed())


def test_numpy_users_load_no_torch(engine):
    code = (
        "import sys, numpy as np\nfrom svdq_trt.runtime import OnnxSession\n"
        f"y = OnnxSession({str(engine)!r}).run({{'x': np.ones((1, 8), np.float16), 't': np.ones((1, 1), np.float32)}})"
        "\nassert y['y'].shape == (1, 8) and 'torch' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
