"""manifest.json and its class: what is written is what was read, and what does not fit is named by its place."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from svdq_trt.artifact import manifest
from svdq_trt.artifact.manifest import Manifest
from svdq_trt.artifact.manifest_fields import fields, overview
from svdq_trt.base.errors import ArtifactError
from tests.harness.manifests import complete, file_entry, quantized_entry, tensor_entry, write_manifest

FULL = {
    "inputs": [tensor_entry("x", "float16", (1, 2, 4), (8, 8, 8)) | {"axes": ["batch", ""]}],
    "quantized": [quantized_entry("to_q", "to_qkv"), quantized_entry("to_k", "to_qkv") | {"sqnr_db": None}],
    "kept_16bit": [{"name": "conv_in", "reason": "a convolution"}],
    "loras": [
        {
            "file": "style.safetensors",
            "sha256": "0",
            "strength": 0.8,
            "quantized_layers": ["to_q"],
            "dense_layers": [],
            "text_encoder_tensors": 2,
            "left_out": [{"name": "a", "reason": "no layer"}],
            "cut": [{"node": "to_qkv", "rank": 16, "error": 0.001}],
        }
    ],
    "accuracy": {
        "against": "the FP16 ONNX",
        "sizes": {"batch": 1},
        "seed": 1,
        "mean_layer_sqnr_db": None,
        "outputs": [{"name": "y", "sqnr_db": 20.5, "cosine": 0.99, "max_abs": 0.5, "ref_max_abs": 3.0}],
        "plot": "accuracy.png",
        "plot_sha256": "0" * 64,
    },
    "device_memory_bytes": {"weights": 1, "activations": None},
    "config": {"checkpoint": None, "skip": ["*.ff.*"], "batch": {"min": 1, "opt": 1, "max": 2}},
}


@pytest.mark.parametrize("parts", [{}, {"plan": {}, "backend": {}, "incomplete": "no TensorRT"}, FULL])
def test_what_is_read_is_written_again(tmp_path, parts):
    path = write_manifest(tmp_path, **parts)
    text = path.read_text()
    data = json.loads(text)
    assert {key: data[key] for key in parts} == parts
    assert list(data) == [name for name, *_ in fields(Manifest)]  # in one order, everything
    assert list(data["quantized"][0]) == list(FULL["quantized"][0]) if data["quantized"] else True
    manifest.write(tmp_path, manifest.read(tmp_path))
    assert path.read_text() == text


def test_a_newer_releases_field_is_passed_over():
    assert complete(colour="red") == complete()


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"rank": "32"}, "m.json: rank: a str, want an int. Build the engine again."),
        ({"plan": {"file": "p", "bytes": 1}}, "m.json: plan.sha256: missing, want the field. Build the engine again."),
        ({"kept_16bit": [{"name": 1}]}, "m.json: kept_16bit[0].name: an int, want a str. Build the engine again."),
        ({"plugin": []}, "m.json: plugin: an array, want an object or null. Build the engine again."),
        ({"accuracy": "x"}, "m.json: accuracy: a str, want an object or null. Build the engine again."),
        ({"arch": "ada"}, "m.json: arch: 'ada', want sm_NN. Build the engine again."),
        ({"version": 2}, "m.json: version 2, want 1. Build the engine again."),
        ({"inputs": [FULL["inputs"][0] | {"shape": {"min": [1], "opt": [1], "max": ["1"]}}]}, "inputs[0].shape.max[0]"),
        ({"inputs": [FULL["inputs"][0] | {"axes": ["batch"]}]}, "m.json: inputs[0]: 1 axes of 2 dimensions, want"),
        ({"device_memory_bytes": {"weights": "x"}}, "m.json: device_memory_bytes[...]: a str, want an int or null."),
    ],
)
def test_what_does_not_fit_is_reported_with_its_place(parts, message):
    with pytest.raises(ArtifactError) as caught:
        manifest.from_json(manifest.to_json(complete()) | parts, "m.json")
    assert message in str(caught.value)


def test_a_missing_field_of_the_manifest_is_reported():
    data = manifest.to_json(complete())
    del data["model"]
    with pytest.raises(ArtifactError, match=r"m\.json: model: missing, want the field\."):
        manifest.from_json(data, "m.json")


def test_help_lists_every_field(capsys):
    from svdq_trt.cli import main

    with pytest.raises(SystemExit):
        main(["verify", "--help"])
    assert overview() in capsys.readouterr().out
    assert [line.split()[0] for line in overview().splitlines() if line[2] != " "] == [n for n, *_ in fields(Manifest)]


def test_a_files_entry_is_its_content(tmp_path):
    (tmp_path / "model.plan").write_bytes(b"plan")
    write_manifest(tmp_path, plan=file_entry(tmp_path / "model.plan"))
    assert manifest.verify(tmp_path, parts=("plan",)).plan.bytes == 4


def covers(whole: Any, part: Any) -> bool:
    """Whether `whole` holds all of `part`, and more only in objects."""
    if isinstance(part, dict):
        return all(key in whole and covers(whole[key], value) for key, value in part.items())
    if isinstance(part, list):
        return len(whole) == len(part) and all(map(covers, whole, part))
    return bool(whole == part)


def test_manifests_of_earlier_builds_are_read(tmp_path):
    """The file that release 1.0.0 wrote, cut to two entries a list, and one from before unsigned codes were listed."""
    text = Path(__file__).parents[1].joinpath("harness", "manifest_1.json").read_text()
    (tmp_path / manifest.NAME).write_text(text)
    data = json.loads(text)
    read = manifest.to_json(manifest.read(tmp_path))
    assert covers(read, data) and read["origin"] == read["artifact"] == {} and read["onnx"]["sha256"] == ""
    assert read["attention"] == "tensorrt"
    for entry in data["quantized"]:
        del entry["act_unsigned"], entry["act_shift"]
    for absent in ("incomplete", "allocation", "loras", "lora_slots", "plugin_layers"):
        del data[absent]
    found = manifest.from_json(data)
    assert found.quantized[0].act_unsigned is False and found.lora_slots is None and found.loras == ()
