"""What `svdq-trt triton` writes, refuses and prints."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from svdq_trt.base.libraries import AUTOLOAD, AUTOLOAD_ENV
from svdq_trt.cli import main
from tests.harness.manifests import change_manifest
from tests.harness.serve_toy import toy_answer, toy_feed, write_toy

pytest.importorskip("tritonclient.grpc.model_config_pb2")


@pytest.fixture(autouse=True)
def autoload(tmp_path, monkeypatch):
    """Any bytes do: nothing here opens it."""
    path = tmp_path / "built" / AUTOLOAD
    path.parent.mkdir()
    path.write_bytes(b"autoload")
    monkeypatch.setenv(AUTOLOAD_ENV, str(path))
    return path


@pytest.fixture
def toy(tmp_path):
    return write_toy(tmp_path / "toy-sm_89")


@pytest.fixture
def full(tmp_path):
    return write_toy(tmp_path / "toy-sm_89", backend="tensorrt")


def triton(engine, repository, *options) -> int:
    return main(["triton", str(engine), "--repository", str(repository), *options])


def names(folder) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def config_of(folder):
    from svdq_trt.serve.config import from_text

    return from_text((folder / "config.pbtxt").read_text())


def test_tensorrt_has_the_plan_and_both_routes_to_the_plugin(full, tmp_path, capsys):
    repository = tmp_path / "models"
    assert triton(full, repository) == 0
    model = repository / "toy-sm_89"
    assert names(model) == [
        "1/libsvdq_trt_autoload.so",
        "1/libsvdq_trt_plugin.so",
        "1/manifest.json",
        "1/model.plan",
        "config.pbtxt",
    ]
    config = config_of(model)
    assert (config.backend, config.default_model_filename) == ("tensorrt", "model.plan")
    lines = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if "tritonserver" in line]
    start = ["tritonserver", "--model-repository", str(repository), "--disable-auto-complete-config"]
    assert lines == [
        [*start, "--backend-config=tensorrt,version-compatible=true"],
        [*start, f"--backend-config=tensorrt,plugins={model}/1/libsvdq_trt_autoload.so"],
    ]


def test_plan_of_tensorrt_rtx_is_refused_in_one_sentence_with_three_ways_out(toy, tmp_path, capsys):
    assert triton(toy, tmp_path / "models") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "a plan of tensorrt-rtx 1.2.3, want one of full TensorRT" in line
    for way in ("--variant python", "--variant onnxruntime", f"svdq-trt finish {toy} --backend tensorrt"):
        assert way in line
    assert not (tmp_path / "models").exists()


def test_the_finish_command_it_offers_parses(toy, tmp_path, capsys):
    from svdq_trt.cli import parse

    triton(toy, tmp_path / "models")
    words = shlex.split(capsys.readouterr().err.rpartition("svdq-trt finish")[2].strip().rstrip("."))
    args = parse(["finish", *words])
    assert (args.engine, args.backend) == (toy, "tensorrt")


@pytest.mark.parametrize(
    ("device", "runtime", "files"),
    [
        (
            "gpu",
            "session",
            ["1/libsvdq_trt_plugin.so", "1/manifest.json", "1/model.plan", "1/model.py", "config.pbtxt"],
        ),
        ("cpu", "onnxruntime", ["1/manifest.json", "1/model.onnx", "1/model.py", "config.pbtxt"]),
    ],
)
def test_python_says_which_runtime_it_is(toy, tmp_path, capsys, device, runtime, files):
    assert triton(toy, tmp_path / "models", "--variant", "python", "--device", device, "--name", "m") == 0
    model = tmp_path / "models" / "m"
    assert names(model) == files
    assert config_of(model).parameters["svdq_trt_runtime"].string_value == runtime
    assert f"runtime {runtime}" in capsys.readouterr().out
    compile((model / "1" / "model.py").read_text(), "model.py", "exec")


@pytest.mark.parametrize(
    ("dtype", "served", "file"),
    [
        ("float16", "TYPE_FP16", "model.onnx"),
        ("bfloat16", "TYPE_FP32", "model.f32.onnx"),
    ],
)
def test_onnxruntime_file_runs_from_the_repository_as_its_config_says(tmp_path, dtype, served, file):
    import tritonclient.grpc.model_config_pb2 as pb

    engine = write_toy(tmp_path / "toy", dtype)
    assert triton(engine, tmp_path / "models", "--variant", "onnxruntime", "--device", "cpu") == 0
    model = tmp_path / "models" / "toy"
    config = config_of(model)
    assert config.default_model_filename == file and pb.DataType.Name(config.input[0].data_type) == served
    session = onnxruntime.InferenceSession(str(model / "1" / file), providers=["CPUExecutionProvider"])
    inputs = toy_feed(2, 16, dtype=dtype)
    width = {"TYPE_FP16": np.float16, "TYPE_FP32": np.float32}[served]
    (got,) = session.run(None, {"x": inputs["x"].astype(width), "t": inputs["t"]})
    assert got.dtype == width and np.array_equal(got, toy_answer(inputs))


def test_a_second_run_replaces_the_first_and_leaves_nothing_aside(toy, full, tmp_path):
    models = tmp_path / "models"
    assert triton(toy, models, "--variant", "python", "--name", "m") == 0
    assert triton(full, models, "--name", "m", "--instances", "2") == 0
    assert "1/model.py" not in names(models / "m") and config_of(models / "m").instance_group[0].count == 2
    assert [p.name for p in models.iterdir()] == ["m"]


def test_a_rebuilt_engine_does_not_change_what_is_served(toy, tmp_path):
    triton(toy, tmp_path / "models", "--variant", "python")
    before = (tmp_path / "models" / "toy-sm_89" / "1" / "manifest.json").read_bytes()
    change_manifest(toy, model="another")
    assert (tmp_path / "models" / "toy-sm_89" / "1" / "manifest.json").read_bytes() == before


def test_a_model_of_somebody_elses_is_left_alone(toy, tmp_path, capsys):
    theirs = tmp_path / "models" / "m" / "config.pbtxt"
    theirs.parent.mkdir(parents=True)
    theirs.write_text('name: "m"')
    assert triton(toy, tmp_path / "models", "--variant", "python", "--name", "m") == 1
    assert "did not write" in capsys.readouterr().err and theirs.read_text() == 'name: "m"'


def test_versions_added_by_hand_are_left_alone(toy, tmp_path, capsys):
    triton(toy, tmp_path / "models", "--variant", "python", "--name", "m")
    (tmp_path / "models" / "m" / "2").mkdir()
    assert triton(toy, tmp_path / "models", "--variant", "python", "--name", "m") == 1
    assert "holds 2" in capsys.readouterr().err and (tmp_path / "models" / "m" / "2").is_dir()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--variant", "tensorflow"], 2, "--variant: 'tensorflow', want one of tensorrt, python, onnxruntime"),
        (["--device", "tpu"], 2, "--device: 'tpu', want one of gpu, cpu"),
        (["--device", "cpu"], 2, "want gpu for --variant tensorrt"),
        (["--name", "../m"], 2, "--name: '../m'"),
        (["--name", ".m"], 2, "--name: '.m'"),
        (["--instances", "0"], 2, "--instances: 0, want 1 to 64"),
        (["--dynamic-batching", "-1"], 2, "--dynamic-batching: -1"),
    ],
)
def test_options_that_cannot_be_meant(full, tmp_path, capsys, options, code, message):
    assert triton(full, tmp_path / "models", *options) == code
    assert message in capsys.readouterr().err and not (tmp_path / "models").exists()


def test_damaged_plan_is_not_served(full, tmp_path, capsys):
    (full / "model.plan").write_bytes(b"nalp")
    assert triton(full, tmp_path / "models") == 1
    assert "SHA-256" in capsys.readouterr().err


@pytest.mark.parametrize("options", [[], ["--variant", "python"]])
def test_without_a_plan_the_command_that_builds_it_is_named(full, tmp_path, capsys, options):
    change_manifest(full, plan={}, backend={})
    assert triton(full, tmp_path / "models", *options) == 1
    assert f"svdq-trt finish {full}" in capsys.readouterr().err
    assert triton(full, tmp_path / "models", "--variant", "onnxruntime") == 0  # needs none


def test_commands_of_the_documentation_parse():
    from svdq_trt.cli import parse

    text = (Path(__file__).resolve().parents[3] / "docs" / "triton.md").read_text()
    blocks = "\n".join(re.findall(r"```bash\n(.*?)```", text, re.S))
    words = [shlex.split(line) for line in blocks.splitlines() if line.startswith("svdq-trt ")]
    assert len(words) >= 4
    for line in words:
        parse(line[1:])


@pytest.mark.parametrize("variant", ("tensorrt", "python", "onnxruntime"))
def test_lora_slots_are_refused(full, tmp_path, capsys, variant):
    change_manifest(full, lora_slots={"file": "lora_slots.safetensors", "bytes": 1, "sha256": "0" * 64})
    assert triton(full, tmp_path / "models", "--variant", variant) == 1
    assert "LoRA slots" in capsys.readouterr().err
    assert not (tmp_path / "models" / "toy-sm_89").exists()
