"""Everything that a build or a scan is given is opened and checked before a stage runs or a folder is made."""

from __future__ import annotations

import json
import platform
import shutil
import subprocess
from dataclasses import replace

import pytest
import torch
from safetensors.torch import save_file

from svdq_trt import cli
from svdq_trt.artifact.sensitivity import Effect, Sensitivity
from svdq_trt.base.errors import UnsupportedError
from svdq_trt.build import run, scan
from svdq_trt.checkpoint import load
from svdq_trt.contract.archs import KERNELS, parse_arch
from svdq_trt.engine import plugin_lib
from svdq_trt.engine.backend import Backend
from svdq_trt.models import get_model

SPEC = get_model("sdxl-tiny")
NODES = [group.node for group in SPEC.groups(SPEC.build())]


def inputs(**changes):
    values = {io.name: t for io, t in zip(SPEC.inputs, SPEC.example_inputs(batch=1, height=64, width=64), strict=True)}
    return values | changes


def a_scan(model="sdxl-tiny", nodes=NODES):
    effects = tuple(Effect(node, "x", 20.0, 30.0) for node in nodes)
    return Sensitivity(model, "int4", 32, "fast", "", effects, 20.0)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A folder of files that users mean to be right."""
    folder = tmp_path_factory.mktemp("given")
    save_file(inputs(timestep=torch.full((1,), float("nan"))), folder / "nan.safetensors")
    save_file({"sample": torch.zeros(1)}, folder / "other.safetensors")
    save_file(inputs(sample=torch.zeros(1, 4, 8, 9)), folder / "odd.safetensors")
    (folder / "prompts.txt").write_text("a fox\n")
    weights = dict(load(SPEC, random_seed=0).state_dict())
    save_file(weights | {"conv_in.bias": torch.zeros(3)}, folder / "weights.safetensors")
    for name, index in (
        ("broken", "{"),
        ("flux", '{"transformer": ["diffusers", "FluxTransformer2DModel"]}'),
        ("types", '{"unet": {"diffusers": 1}}'),
        ("empty", '{"unet": ["diffusers", "UNet2DConditionModel"]}'),
    ):
        (folder / name).mkdir()
        (folder / name / "model_index.json").write_text(index)
    a_scan("pixart-tiny").save(folder / "pixart.json")
    a_scan(nodes=NODES[1:]).save(folder / "short.json")
    (folder / "junk.json").write_text(json.dumps({"version": 1, "effects": 3}))
    return folder


AUTO = ("--rank", "auto", "--budget-bytes", "1GB", "--sensitivity")
PROMPTS = ("--calibration-prompts", "{files}/prompts.txt", "--calibration-pipeline")
WRONG = [
    (("--skip", "*.to_qq"), "--skip: '*.to_qq' matches no quantized layer"),
    (("--skip", "<2X"), "--skip: '<2X', want a number of weights"),
    (("--calibration", "{files}/nan.safetensors"), "nan.safetensors: 'timestep': NaN or Inf"),
    (("--calibration", "{files}/other.safetensors"), "other.safetensors: no tensor 'encoder_hidden_states'"),
    (("--calibration", "{files}/odd.safetensors"), "'sample': shape [1, 4, 8, 9], want a multiple of 4 for width"),
    (("--checkpoint", "{files}/weights.safetensors"), "'conv_in.bias': shape [3], want [64]"),
    ((*AUTO, "{files}/pixart.json"), "a scan of pixart-tiny, want one of sdxl-tiny"),
    ((*AUTO, "{files}/short.json"), f"no figures of {NODES[0]} (1 nodes missing)"),
    ((*AUTO, "{files}/junk.json"), "junk.json: no usable scan"),
    ((*PROMPTS, "{files}/broken"), "model_index.json: not valid JSON"),
    ((*PROMPTS, "{files}/flux"), "model_index.json: unet is null, want a UNet2DConditionModel, as sdxl-tiny is"),
    ((*PROMPTS, "{files}/types"), 'unet is {{"diffusers": 1}}, want a UNet2DConditionModel'),
    ((*PROMPTS, "{files}/empty"), "empty: no config.json"),
    ((*PROMPTS, "{files}/empty", "--calibration-samples", "99"), "--calibration-samples: 99, want 1 to 20"),
    (("--random-weights", "-1"), "--random-weights: -1, want a seed of 0 or more"),
    (("--backend", "tensort"), "--backend: 'tensort', want auto, tensorrt-rtx"),
]


@pytest.mark.parametrize(("words", "text"), WRONG, ids=[" ".join(words[-2:]) for words, _ in WRONG])
def test_a_mistake_is_found_before_any_work(files, tmp_path, monkeypatch, capsys, words, text):
    pytest.importorskip("transformers")
    monkeypatch.setattr(run.Execution, "run", lambda *_: pytest.fail("a stage runs"))
    words = [word.format(files=files) for word in words]
    weights = [] if "--checkpoint" in words else ["--random-weights", "0"]
    out = tmp_path / "engines"
    assert cli.main(["build", "--model", "sdxl-tiny", "--arch", "sm_89", *weights, "--out", str(out), *words]) in (1, 2)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and text.replace("{{", "{").replace("}}", "}") in said[0] and not out.exists(), said


@pytest.mark.parametrize(
    ("words", "text"), [row for row in WRONG if row[0][0] in ("--skip", "--calibration", "--checkpoint")]
)
def test_a_scan_finds_them_too(files, tmp_path, monkeypatch, capsys, words, text):
    monkeypatch.setattr(scan, "_quantized", lambda *_: pytest.fail("the quantizer runs"))
    words = [word.format(files=files) for word in words]
    weights = [] if "--checkpoint" in words else ["--random-weights", "0"]
    out = tmp_path / "scan.json"
    assert cli.main(
        ["sensitivity", "--model", "sdxl-tiny", "--format", "int4", *weights, "--out", str(out), *words]
    ) in (1, 2)
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and text in said[0] and not out.exists(), said


# ---- targets ---------------------------------------------------------------------------------------------------


@pytest.fixture
def library(monkeypatch, tmp_path):
    """A plugin library that was compiled for two GPUs."""
    path = tmp_path / "plugin.so"
    path.write_bytes(b"")
    found = plugin_lib.PluginLibrary(path, "", "1.0.0", "linux-x86_64", (80, 89))
    monkeypatch.setattr(plugin_lib, "find", lambda *_: found)
    return found


def test_the_library_itself_is_asked(tmp_path):
    """One that holds machine code for an A100 alone, built with that SVDQ_ARCHS."""
    compiler = shutil.which("cc") or pytest.skip("no C compiler")
    source, path = tmp_path / "p.c", tmp_path / "p.so"
    api = (
        'const char* svdq_version(void) { return "1.2.3"; }',
        "int svdq_supports(int f, int d, int sm) { return sm == 80; }",
    )
    source.write_text("\n".join(api))
    subprocess.run([compiler, "-shared", "-fPIC", str(source), "-o", str(path)], check=True)
    found = plugin_lib.find(path)
    assert (found.version, found.archs, found.platform) == ("1.2.3", (80,), f"linux-{platform.machine()}")
    with pytest.raises(UnsupportedError, match="machine code for sm_80, want for sm_86"):
        plugin_lib.require_arch(found, 86)


def test_an_arch_that_the_plugin_was_not_compiled_for_is_refused(library, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run.Execution, "run", lambda *_: pytest.fail("a stage runs"))
    words = ["--model", "sdxl-tiny", "--random-weights", "0", "--out", str(tmp_path / "engines")]
    assert cli.main(["build", *words, "--arch", "sm_89", "--arch", "sm_120"]) == 1
    said = capsys.readouterr().err
    assert "plugin.so: machine code for sm_80, sm_89, want for sm_120. " in said and "SVDQ_ARCHS" in said
    assert not (tmp_path / "engines").exists()


def test_machines_with_arm_processors_are_mentioned(library, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(plugin_lib, "find", lambda *_: replace(library, archs=(121,)))
    monkeypatch.setattr(run.Build, "_run", lambda *_: [])
    words = ["--model", "sdxl-tiny", "--random-weights", "0", "--out", str(tmp_path)]
    assert cli.main(["build", *words, "--arch", "sm_121"]) == 0
    said = " ".join(capsys.readouterr().err.split())
    assert "sm_121: DGX Spark's is an Arm processor" in said and "svdq-trt finish" in said


@pytest.mark.parametrize("text", ["sm_86,sm_89", "sm_86 sm_89", "86;89"])
def test_several_archs_in_one_plan_are_refused_with_the_reason(text):
    with pytest.raises(Exception, match="A plan is for one arch: give --arch once for each"):
        parse_arch(text)


def test_a_plan_is_built_for_one_arch():
    """TensorRT-RTX lets a plan have several, but all of them then run the oldest one's attention code."""
    calls = []

    class Config:
        num_compute_capabilities = 0

        def set_compute_capability(self, capability, index):
            calls.append((capability, index))

    names = type("Names", (), {f"SM{arch}": arch for arch in KERNELS})
    for arch in KERNELS:
        config = Config()
        Backend("fake", type("Module", (), {"ComputeCapability": names})).set_target(config, arch)
        assert config.num_compute_capabilities == 1 and calls.pop() == (arch, 0) and not calls
