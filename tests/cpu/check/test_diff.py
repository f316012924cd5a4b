"""``svdq-trt diff`` on small ONNX files: figures on the right side, inputs, exit codes, what it says."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper
from safetensors.torch import save_file

from svdq_trt.artifact.manifest import TensorProfile
from svdq_trt.base.errors import ArtifactError, SvdqError
from svdq_trt.cli import main
from svdq_trt.engine.gpu import local_arch
from svdq_trt.evaluate.batches import divided, joined
from svdq_trt.evaluate.diff import read_inputs, subject
from svdq_trt.evaluate.metrics import compare_outputs
from tests.harness.manifests import tensor_entry, write_manifest

WEIGHT = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)


def write(path: Path, factor: float = 1.0, dtype: int = onnx.TensorProto.FLOAT16, output: str = "y") -> Path:
    """y = factor * x W, with x [b, 8] and 16-bit inputs and outputs."""
    nodes = [
        helper.make_node("Cast", ["x"], ["x32"], to=1),
        helper.make_node("MatMul", ["x32", "w"], ["y32"]),
        helper.make_node("Cast", ["y32"], [output], to=dtype),
    ]
    value = helper.make_tensor_value_info
    graph = helper.make_graph(
        nodes,
        "g",
        [value("x", dtype, ["b", 8])],
        [value(output, dtype, ["b", 8])],
        [numpy_helper.from_array(WEIGHT * np.float32(factor), "w")],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 23)], ir_version=10), path)
    return path


def write_folder(folder: Path, factor: float, batch: tuple[int, int, int] = (1, 2, 4)) -> Path:
    """An engine folder whose model.onnx is the toy; its plan is a dummy that nothing may open here."""
    folder.mkdir()
    size = write(folder / "model.onnx", factor).stat().st_size
    (folder / "model.plan").write_bytes(b"plan")
    write_manifest(
        folder,
        onnx={"file": "model.onnx", "bytes": size},
        inputs=[tensor_entry("x", "float16", batch, (8, 8, 8)) | {"axes": ["batch", ""]}],
    )
    return folder


@pytest.fixture
def inputs(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"x": torch.randn(3, 8, generator=torch.Generator().manual_seed(1)).half()}, path)
    return path


def diff(*words: object) -> int:
    return main(["diff", *map(str, words), "--onnx-device", "cpu"])


def test_signal_is_the_references(tmp_path, inputs):
    """Twice the reference: the error is as large as the reference, 0 dB; with the sides exchanged, 6 dB."""
    one, two, out = write(tmp_path / "1.onnx"), write(tmp_path / "2.onnx", 2.0), tmp_path / "out.json"
    for candidate, reference, want, largest in ((two, one, 0.0, 1), (one, two, 20 * np.log10(2), 2)):
        assert diff(candidate, "--against", reference, "--inputs", inputs, "--json", out) == 0
        (figures,) = json.loads(out.read_text())["outputs"]
        x = read_inputs(inputs)["x"].astype(np.float64)
        assert abs(figures["sqnr_db"] - want) < 0.01 and figures["cosine"] == pytest.approx(1, abs=1e-6)
        assert figures["ref_max_abs"] == pytest.approx(largest * np.abs(x @ WEIGHT).max(), rel=1e-3)
        assert figures["max_abs"] == pytest.approx(np.abs(x @ WEIGHT).max(), rel=2e-3)


def test_figures_are_the_formulas():
    rng = np.random.default_rng(0)
    ref = rng.standard_normal((40, 9))
    got = ref + 0.1 * rng.standard_normal(ref.shape)
    (figures,) = compare_outputs({"y": ref}, {"y": got}, ("a", "b"))
    assert figures.sqnr_db == pytest.approx(10 * np.log10((ref**2).sum() / ((ref - got) ** 2).sum()), abs=1e-3)
    cosine = (ref * got).sum() / np.sqrt((ref**2).sum() * (got**2).sum())
    assert figures.cosine == pytest.approx(cosine, abs=1e-6)
    assert figures.max_abs == pytest.approx(np.abs(ref - got).max())


def test_gate_is_exit_code_3_and_everything_is_written(tmp_path, inputs, capsys):
    one, near = write(tmp_path / "1.onnx"), write(tmp_path / "2.onnx", 1.01)  # 40 dB
    files = ["--json", tmp_path / "d.json", "--plot", tmp_path / "d.png"]
    assert diff(near, "--against", one, "--inputs", inputs, "--min-sqnr", 30) == 0
    assert diff(near, "--against", one, "--inputs", inputs, "--min-sqnr", 50, *files) == 3
    printed = capsys.readouterr()
    assert "2.onnx in ONNX Runtime: 4" in printed.err and "want at least 50 dB (--min-sqnr)." in printed.err
    assert "SQNR dB" in printed.out and f"against {one} in ONNX Runtime" in printed.out
    assert (tmp_path / "d.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "d.json").read_text())["inputs"] == {"file": str(inputs)}


def test_equal_files_have_no_noise(tmp_path, inputs):
    one, out = write(tmp_path / "1.onnx"), tmp_path / "out.json"
    assert diff(one, "--against", one, "--inputs", inputs, "--min-sqnr", 200, "--json", out) == 0
    (figures,) = json.loads(out.read_text())["outputs"]
    assert figures["sqnr_db"] is None and figures["max_abs"] == 0


def test_recorded_inputs_of_more_samples_than_a_batch_are_divided(tmp_path, capsys):
    """As --calibration-prompts writes them: samples stacked, more than the engine takes at once."""
    folder, one, out = write_folder(tmp_path / "engine", 1.0), write(tmp_path / "1.onnx"), tmp_path / "out.json"
    many = tmp_path / "many.safetensors"
    save_file({"x": torch.randn(11, 8, generator=torch.Generator().manual_seed(1)).half()}, many)
    words = ("--against", one, "--inputs", many, "--runtime", "onnx", "--json", out)
    assert diff(folder, *words) == 0
    (figures,) = json.loads(out.read_text())["outputs"]
    want = np.abs(read_inputs(many)["x"].astype(np.float64) @ WEIGHT).max()  # over all samples
    assert figures["max_abs"] == 0 and figures["ref_max_abs"] == pytest.approx(want, rel=1e-3)
    assert diff(write_folder(tmp_path / "fixed", 1.0, batch=(4, 4, 4)), *words) == 1
    assert "inputs: 11 samples, want a number that batches of 4 add up to." in capsys.readouterr().err


def test_parts_are_in_the_range_of_the_batch_and_leave_positions_alone():
    rows = (1, 2, 4), (1, 1, 1)
    profiles = [
        TensorProfile("x", "float16", *zip(*rows, strict=True), ("batch", "")),
        TensorProfile("ids", "float32", (4, 3), (4, 3), (4, 3), ("tokens", "")),
    ]
    feed = {"x": np.arange(11)[:, None], "ids": np.zeros((4, 3))}
    parts = divided(feed, profiles)
    assert [len(part["x"]) for part in parts] == [3, 4, 4]
    assert all(part["ids"] is feed["ids"] for part in parts)
    assert np.array_equal(joined([{"y": part["x"]} for part in parts])["y"], feed["x"])
    assert joined([{"y": np.float32(1)}]) == {"y": 1}  # one part, without an axis
    assert divided({**feed, "x": feed["x"][:4]}, profiles)[0]["x"].base is feed["x"].base


def test_two_dtypes_get_the_same_inputs(tmp_path, inputs):
    """float16 against bfloat16, which runs as its float32 twin: apart by bfloat16's rounding."""
    half, low = write(tmp_path / "f16.onnx"), write(tmp_path / "bf16.onnx", dtype=onnx.TensorProto.BFLOAT16)
    assert diff(low, "--against", half, "--inputs", inputs, "--min-sqnr", 40) == 0


@pytest.mark.skipif(local_arch() is not None, reason="there is a GPU")
def test_without_a_gpu_it_says_that_the_plan_is_not_run(tmp_path, inputs, capsys):
    folder, one = write_folder(tmp_path / "engine", 1.001), write(tmp_path / "1.onnx")
    out = tmp_path / "out.json"
    assert diff(folder / "model.plan", "--against", one, "--inputs", inputs, "--json", out) == 0
    note = f"{folder}: no GPU here, so its model.onnx runs in ONNX Runtime; the plan itself is not run."
    assert note in capsys.readouterr().err
    side = json.loads(out.read_text())["candidate"]
    assert side["runtime"] == "ONNX Runtime" and side["note"] == note
    assert diff(folder, "--against", one, "--inputs", inputs, "--runtime", "onnx") == 0
    assert "no GPU" not in capsys.readouterr().err  # asked for: nothing to explain
    assert diff(folder, "--against", one, "--inputs", inputs, "--runtime", "tensorrt") == 1
    assert "no GPU here, want a plan and a GPU to run it. Use --runtime onnx." in capsys.readouterr().err


def test_plan_in_tensorrt_where_there_is_a_gpu(tmp_path, monkeypatch):
    from svdq_trt.runtime import choice

    folder = write_folder(tmp_path / "engine", 1.0)
    monkeypatch.setattr(choice, "local_arch", lambda: 89)
    assert subject(folder, "auto").where == "TensorRT" and subject(folder, "onnx").where == "ONNX Runtime"
    assert subject(folder, "auto").label == f"{folder / 'model.plan'} in TensorRT"


@pytest.mark.parametrize(
    "words, code, text",
    [
        (["{one}", "--against", "{one}"], 2, "Give --inputs FILE or --model NAME"),
        (["{one}", "--against", "{none}", "--inputs", "{inputs}"], 1, "none.onnx: cannot be read"),
        (["{folder}", "--against", "{one}", "--inputs", "{inputs}"], 1, "manifest.json"),
        (["{inputs}", "--against", "{one}", "--inputs", "{inputs}"], 1, "want an engine folder, its model.plan, or an"),
        (["{one}", "--against", "{one}", "--inputs", "{one}"], 1, "want a complete safetensors file"),
        (["{one}", "--against", "{one}", "--model", "sdxl-tiny"], 1, "input 'x': missing"),
        (["{one}", "--against", "{other}", "--inputs", "{inputs}"], 1, "other outputs or shapes than the reference"),
        (["{nan}", "--against", "{one}", "--inputs", "{inputs}"], 1, "output y: NaN or Inf"),
        (["{one}", "--against", "{one}", "--inputs", "{inputs}", "--min-sqnr", "nan"], 2, "a finite number of dB"),
        (["{one}", "--against", "{one}", "--inputs", "{inputs}", "--batch", "2"], 2, "--inputs: given with sizes"),
        (["{one}", "--against", "{one}", "--inputs", "{inputs}", "--runtime", "x"], 2, "--runtime: 'x', want one of"),
    ],
)
def test_mistakes_are_one_line(tmp_path, inputs, capsys, words, code, text):
    places = {
        "one": write(tmp_path / "1.onnx"),
        "none": tmp_path / "none.onnx",
        "inputs": inputs,
        "folder": tmp_path,
        "other": write(tmp_path / "o.onnx", output="z"),
        "nan": write(tmp_path / "n.onnx", float("nan")),
    }
    assert diff(*(word.format(**places) for word in words)) == code
    printed = capsys.readouterr().err.strip().splitlines()[-1]
    assert printed.startswith("svdq-trt: ") and text in printed, printed


def test_empty_inputs_file_is_refused(tmp_path):
    save_file({}, tmp_path / "e.safetensors")
    with pytest.raises(Exception, match="no tensors, want one per model input"):
        read_inputs(tmp_path / "e.safetensors")
    with pytest.raises(ArtifactError, match=r"none\.safetensors: not a readable"):
        read_inputs(tmp_path / "none.safetensors")


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.bfloat16, torch.float32, torch.int64])
def test_inputs_of_every_dtype_that_f32_holds(tmp_path, dtype):
    path, values = tmp_path / "x.safetensors", torch.arange(-8, 8).reshape(2, 8).to(dtype)
    save_file({"x": values}, path)
    got = read_inputs(path)["x"]
    assert got.dtype == (np.int64 if dtype is torch.int64 else np.float32)
    assert np.array_equal(got, values.double().numpy())


@pytest.mark.parametrize(
    ("tensor", "text"),
    [
        (torch.zeros((1,) * 65), "'x': 65 dimensions, want at most 8"),
        (torch.zeros(2, 8, dtype=torch.complex64), "'x': dtype C64, want one of F64, F32"),
        (torch.zeros(2, 8, dtype=torch.uint16), "'x': dtype U16, want one of F64, F32"),
        (torch.full((2, 8), float("nan")), "'x': NaN or Inf, want finite values"),
    ],
    ids=["65 dimensions", "complex", "uint16", "NaN"],
)
def test_inputs_that_no_model_takes_are_one_line(tmp_path, tensor, text):
    path = tmp_path / "x.safetensors"
    save_file({"x": tensor}, path)
    with pytest.raises(SvdqError, match=text):
        read_inputs(path)


def test_inputs_are_compared_with_both_engines_before_either_is_opened(tmp_path, capsys):
    folder, one, path = write_folder(tmp_path / "engine", 1.0), write(tmp_path / "1.onnx"), tmp_path / "x.safetensors"
    for tensors, text in (
        ({"x": torch.zeros(2, 9)}, "input 'x': shape [2, 9], want [1..4, 8]"),
        ({"z": torch.zeros(2, 8)}, "input 'x': missing, want x"),
    ):
        save_file(tensors, path)
        assert diff(folder, "--against", one, "--inputs", path, "--runtime", "onnx") == 1
        said = capsys.readouterr().err
        assert text in said and "running" not in said
