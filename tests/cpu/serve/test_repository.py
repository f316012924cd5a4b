"""What `svdq-trt triton` writes, refuses and prints."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from svdq_trt.base.libraries import AUTOLOAD, AUTOLOAD_ENV
from svdq_trt.cli import main
from svdq_trt.runtime import OnnxSession
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


def test_tensorrt_has_the_plan_and_the_plugin(full, tmp_path, capsys):
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
    assert lines[0] == [*start, f"--backend-config=tensorrt,plugins={model}/1/libsvdq_trt_autoload.so"]


@pytest.mark.parametrize(
    ("backend", "options", "gpus", "image", "server"),
    [
        ("tensorrt", [], True, "nvcr.io/nvidia/tritonserver:YY.MM-py3", "plugins=/models/toy/1/"),
        ("tensorrt-rtx", ["--instances", "3"], True, "svdq-triton", ""),
        ("tensorrt-rtx", ["--device", "cpu"], False, "svdq-triton", ""),
        ("tensorrt-rtx", ["--variant", "onnxruntime"], True, "nvcr.io/nvidia/tritonserver:YY.MM-py3", "/models"),
    ],
)
def test_a_container_gets_the_repository_a_gpu_and_shared_memory(
    tmp_path, capsys, backend, options, gpus, image, server
):
    engine = write_toy(tmp_path / "toy", backend=backend)
    assert triton(engine, tmp_path / "my models", *options) == 0
    (line,) = (line for line in capsys.readouterr().out.splitlines() if "docker run" in line)
    words = shlex.split(line)
    assert words[words.index("--volume") + 1] == f"{tmp_path}/my models:/models"
    assert ("--gpus" in words) == gpus and image in words and server in line
    assert words[words.index("--shm-size") + 1] == f"{64 + 2 * (3 if '--instances' in options else 1)}m"


@pytest.mark.parametrize(
    ("backend", "device", "variant"),
    [("tensorrt", "gpu", "tensorrt"), ("tensorrt-rtx", "gpu", "python"), ("tensorrt", "cpu", "python")],
)
def test_the_variant_is_by_default_the_one_that_serves_the_plan(tmp_path, backend, device, variant):
    engine = write_toy(tmp_path / "toy", backend=backend)
    assert triton(engine, tmp_path / "models", "--device", device) == 0
    assert config_of(tmp_path / "models" / "toy").backend == variant


def test_plan_of_tensorrt_rtx_is_refused_in_one_sentence_with_three_ways_out(toy, tmp_path, capsys):
    assert triton(toy, tmp_path / "models", "--variant", "tensorrt") == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "a plan of tensorrt-rtx 1.2.3, want one of full TensorRT" in line
    for way in ("--variant python", "--variant onnxruntime", f"svdq-trt finish {toy} --backend tensorrt"):
        assert way in line
    assert not (tmp_path / "models").exists()


def test_the_finish_command_it_offers_parses(toy, tmp_path, capsys):
    from svdq_trt.cli import parse

    triton(toy, tmp_path / "models", "--variant", "tensorrt")
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
        (
            "cpu",
            "onnxruntime",
            ["1/manifest.json", "1/model.onnx", "1/model.onnx.data", "1/model.py", "config.pbtxt"],
        ),
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


@pytest.mark.parametrize("variant", ["python", "onnxruntime"])
def test_an_engine_that_was_served_still_opens_and_is_served_again(tmp_path, variant):
    """onnx opens no external data with several hard links: neither the engine's file nor the served one may be one."""
    engine = write_toy(tmp_path / "toy", "bfloat16")
    inputs = toy_feed(dtype="bfloat16")
    for _ in range(2):
        assert triton(engine, tmp_path / "models", "--variant", variant, "--device", "cpu") == 0
        for folder in (engine, tmp_path / "models" / "toy" / "1"):
            if variant == "onnxruntime":
                onnx.load(folder / "model.f32.onnx")
            if (folder / "model.onnx").exists():
                with OnnxSession(folder, device="cpu") as session:
                    assert np.array_equal(session.run(inputs)["y"], toy_answer(inputs))


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


def test_versions_stand_beside_each_other_and_one_is_replaced_alone(toy, tmp_path, capsys):
    m, served = tmp_path / "models" / "m", lambda *words: triton(toy, tmp_path / "models", "--name", "m", *words)
    assert served("--model-version", "3") == 0 and names(m)[0].startswith("3/")
    first = (m / "3" / "manifest.json").read_bytes()
    change_manifest(toy, rank=16)
    assert served("--model-version", "10") == 0
    assert (m / "3" / "manifest.json").read_bytes() == first != (m / "10" / "manifest.json").read_bytes()
    change_manifest(toy, rank=64)
    before = (m / "10" / "manifest.json").read_bytes()
    assert served("--model-version", "10") == 0 and (m / "10" / "manifest.json").read_bytes() != before
    assert sorted(p.name for p in m.iterdir()) == ["10", "3", "config.pbtxt"]
    assert [p.name for p in m.parent.iterdir()] == ["m"]
    capsys.readouterr()
    assert served() == 1 and "holds 10, 3" in capsys.readouterr().err
    assert served("--model-version", "4", "--instances", "2") == 1
    assert "config.pbtxt: another instance_group than this version's, want one" in capsys.readouterr().err
    assert not (m / "4").exists()


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--variant", "tensorflow"], 2, "--variant: 'tensorflow', want one of tensorrt, python, onnxruntime"),
        (["--device", "tpu"], 2, "--device: 'tpu', want one of gpu, cpu"),
        (["--variant", "tensorrt", "--device", "cpu"], 2, "want gpu for --variant tensorrt"),
        (["--model-version", "0"], 2, "--model-version: 0, want 1 or more"),
        (["--lora", "style.safetensors"], 2, "--lora: 'style.safetensors', want NAME=FILE"),
        (["--lora", "a/b=style.safetensors"], 2, "--lora: 'a/b=style.safetensors', want NAME=FILE"),
        (["--lora", "a=none.safetensors"], 2, "--lora: 'none.safetensors': no such file"),
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


@pytest.mark.parametrize("variant", ("tensorrt", "onnxruntime"))
def test_tritons_own_backends_fill_no_lora_slots(full, tmp_path, capsys, variant):
    change_manifest(full, lora_slots={"file": "lora_slots.safetensors", "bytes": 1, "sha256": "0" * 64})
    assert triton(full, tmp_path / "models", "--variant", variant) == 1
    got = f"an engine with LoRA slots, which Triton's {variant} backend does not fill, want --variant python"
    assert got in capsys.readouterr().err
    assert not (tmp_path / "models" / "toy-sm_89").exists()


def test_loras_need_slots(toy, tmp_path, capsys):
    (tmp_path / "l.safetensors").write_bytes(b"")
    assert triton(toy, tmp_path / "models", "--lora", f"a={tmp_path}/l.safetensors") == 2
    assert "--lora: an engine without LoRA slots, want one built with --lora-slots R" in capsys.readouterr().err
