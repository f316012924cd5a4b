"""`svdq-trt inspect`: what it says of each maker's file, of unquantized ones, and of what it cannot read."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import save_file

from svdq_trt.artifact import svdq_file
from svdq_trt.checkpoint import load
from svdq_trt.cli import main
from svdq_trt.interop import export_checkpoint
from svdq_trt.interop.survey import survey
from svdq_trt.models import get_model


@pytest.mark.parametrize("maker", ["nunchaku", "nunchaku-lite", "comfy-kitchen"])
def test_what_we_write(quantized, tmp_path, maker, capsys):
    path = tmp_path / ("lite" if maker == "nunchaku-lite" else "x.safetensors")
    export_checkpoint(quantized("pixart-tiny", "int4"), path, maker)
    found = survey(path)
    assert (found.maker, found.models, found.refusal) == (maker, ("pixart-tiny",), "")
    assert found.layers.keys() <= {"int4", "w4a16"} and found.layers["int4"] >= 10 and set(found.ranks) == {16}
    assert found.bytes["quantized layers"] > 0 and "proj_out" in found.dense
    assert main(["inspect", str(path)]) == 0
    out = capsys.readouterr().out
    assert maker in out and f"--quantized {path}" in out and "sm_89" in out


def test_our_own_artifact(quantized):
    path = quantized("flux1-tiny", "nvfp4")
    found = survey(path)
    assert (found.maker, found.models, set(found.ranks)) == ("svdq-trt", ("flux1-tiny",), {16})
    assert found.layers["nvfp4"] > 10 and any(use.startswith("svdq-trt to-lite") for use in found.uses)


def test_an_artifact_of_a_model_without_a_name(quantized, tmp_path):
    artifact = svdq_file.load(quantized("flux1-tiny", "nvfp4"))
    svdq_file.save(
        path := tmp_path / "x.safetensors",
        artifact.tensors,
        {**artifact.meta, "model": "mine-text_encoder"},
        [*artifact.nodes],
    )
    found = survey(path)
    assert found.models == ("mine-text_encoder",) and "no model of this tool has this name" in found.uses[0]


def test_an_unquantized_checkpoint(tmp_path):
    spec = get_model("sdxl-tiny")
    save_file(load(spec, random_seed=0).state_dict(), tmp_path / "x.safetensors")
    found = survey(tmp_path / "x.safetensors")
    assert (found.maker, found.models, found.layers, found.refusal) == ("", ("sdxl-tiny",), {}, "")
    assert f"--checkpoint {tmp_path / 'x.safetensors'}" in found.uses[0]


def test_what_is_not_read_says_why(tmp_path, capsys):
    tensors = {"a.weight": torch.zeros(4, 4, dtype=torch.uint8), "a.weight_scale": torch.zeros(4)}
    save_file(tensors, tmp_path / "diffusion_pytorch_model.safetensors")
    said = {"_class_name": "Other", "quantization_config": {"quant_method": "sdnq"}}
    (tmp_path / "config.json").write_text(json.dumps(said))
    found = survey(tmp_path)
    assert found.models == () and found.layers == {"another format": 1} and found.uses == ()
    assert "quantized by 'sdnq'" in found.refusal
    assert main(["inspect", str(tmp_path)]) == 0
    assert "not read" in capsys.readouterr().out
    assert main(["inspect", str(tmp_path / "none.safetensors")]) == 1
