"""Damaged files that users and other tools give: each is refused in one sentence, or read as what it is."""

from __future__ import annotations

import json
import random

import pytest
import torch
from safetensors.torch import save

from svdq_trt import cli
from svdq_trt.artifact.allocation import Allocation
from svdq_trt.artifact.calibration import Calibration
from svdq_trt.artifact.sensitivity import Effect, Sensitivity
from svdq_trt.base.errors import EXIT_BUG, SvdqError
from svdq_trt.base.journal import Journal
from svdq_trt.build import freshness
from svdq_trt.build.given import check_calibration
from svdq_trt.calibrate.sample import check_pipeline
from svdq_trt.checkpoint import identify_weights, open_weights
from svdq_trt.evaluate.diff import read_inputs
from svdq_trt.models import get_model
from svdq_trt.models.prompts import processor_template
from tests.cpu.check.test_diff import write
from tests.cpu.interop.test_fuzz import mutate
from tests.harness.damage import damaged, tries

SPEC = get_model("sdxl-tiny")
STEM = "diffusion_pytorch_model"


def refused(call, where):
    """Whether `call` refuses, in one line; any other exception fails the test."""
    try:
        call()
    except SvdqError as error:
        assert "\n" not in str(error) and len(str(error)) < 3000, f"{where}: {error}"
        return True
    return False


def example(spec=SPEC):
    example = spec.example_inputs(batch=1, height=64, width=64)
    return {io.name: t.contiguous() for io, t in zip(spec.inputs, example, strict=True)}


def calib(tmp_path):
    path = tmp_path / "whole.safetensors"
    Calibration(
        {"a": torch.ones(8), "b": torch.ones(4)}, {"a": torch.ones(3, 8).half(), "b": torch.ones(2, 4).half()}
    ).save(path)
    return path.read_bytes()


TENSORS = {
    "calibration inputs": (lambda tmp_path: save(example()), lambda path: check_calibration(SPEC, path)),
    "inputs of diff": (lambda tmp_path: save(example()), read_inputs),
    "collected calibration": (calib, Calibration.load),
}


@pytest.mark.parametrize("kind", TENSORS)
def test_damaged_tensors(tmp_path, kind):
    make, read = TENSORS[kind]
    file, rng, count = make(tmp_path), random.Random(kind), 0
    path = tmp_path / "x.safetensors"
    path.write_bytes(file)
    read(path)
    for i in range(tries(150)):
        path.write_bytes(mutate(rng, file))
        count += refused(lambda: read(path), f"{kind} {i}")
    assert tries(150) / 4 < count < tries(150)


def test_damaged_inputs_through_the_command(tmp_path, capsys):
    one, path = write(tmp_path / "1.onnx"), tmp_path / "x.safetensors"
    file, rng, codes = save({"x": torch.ones(3, 8).half()}), random.Random("command"), []
    for i in range(tries(60)):
        path.write_bytes(mutate(rng, file))
        codes.append(cli.main(["diff", str(one), "--against", str(one), "--inputs", str(path), "--onnx-device", "cpu"]))
        said = [line for line in capsys.readouterr().err.splitlines() if not line.startswith("running ")]
        assert codes[-1] != EXIT_BUG and len(said) == (codes[-1] != 0), f"{i}: {said}"
    assert 0 in codes and 1 in codes


def index(folder):
    return {"metadata": {}, "weight_map": {name: f"{STEM}.safetensors" for name in ("a", "b")}}


def config(folder):
    return {"_class_name": "UNet2DConditionModel", **SPEC.config}


def pipeline(folder):
    return {
        "_class_name": "StableDiffusionXLPipeline",
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": [None, None],
    }


def scan(folder):
    Sensitivity("m", "int4", 32, "fast", "", (Effect("a", "x", 20.0, 30.0),) * 2, 20.0).save(folder / "scan")
    return json.loads((folder / "scan").read_text())


def allocation(folder):
    Allocation(9, None, "", 8, 20.5, {"a": 16}, ("b",)).save(folder / "allocation")
    return json.loads((folder / "allocation").read_text())


def record(folder):
    freshness.store(folder, "step", "key", [], {"value": {"x": 1}})
    return json.loads(freshness.record_path(folder, "step").read_text())


#: kind -> (its JSON, its file's name, what reads it)
JSONS = {
    "index": (index, f"unet/{STEM}.safetensors.index.json", lambda f: open_weights(SPEC, str(f))),
    "index, hashed": (index, f"unet/{STEM}.safetensors.index.json", lambda f: identify_weights(SPEC, str(f))),
    "config": (config, "unet/config.json", lambda f: open_weights(SPEC, str(f))),
    "pipeline": (pipeline, "model_index.json", lambda f: check_pipeline(SPEC, f)),
    "processor": (lambda folder: {"chat_template": "{{ messages }}"}, "chat_template.json", processor_template),
    "scan": (scan, "scan", lambda f: Sensitivity.load(f / "scan").predicted_db),
    "allocation": (allocation, "allocation", lambda f: Allocation.load(f / "allocation").summary()),
    "record": (record, ".step.json", lambda f: freshness.lookup(f, "step", "key")),
}


@pytest.mark.parametrize("kind", JSONS)
def test_damaged_json(tmp_path, kind):
    make, name, read = JSONS[kind]
    (tmp_path / "unet").mkdir()
    (tmp_path / "unet" / "config.json").write_text(json.dumps(config(tmp_path)))
    (tmp_path / "unet" / f"{STEM}.safetensors").write_bytes(save({"a": torch.zeros(2), "b": torch.zeros(2)}))
    text, rng = json.dumps(make(tmp_path)), random.Random(kind)
    for i in range(tries(100)):
        (tmp_path / name).write_bytes(damaged(rng, text))
        refused(lambda: read(tmp_path), f"{kind} {i}: {(tmp_path / name).read_bytes()[:200]!r}")


def test_damaged_journals_are_started_over_from_the_damage(tmp_path):
    rng, path = random.Random("journal"), tmp_path / "j"
    for i in range(tries(100)):
        path.unlink(missing_ok=True)
        Journal(path, "key").add("a", 1.5)
        lines = path.read_text().splitlines()
        at = rng.randrange(len(lines))
        path.write_bytes(
            b"\n".join(damaged(rng, line) if j == at else line.encode() for j, line in enumerate(lines)) + b"\n"
        )
        journal = Journal(path, "key")
        journal.add("z", i)
        assert Journal(path, "key").values["z"] == i
