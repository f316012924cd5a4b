"""sdxl-tiny with a LoRA inside and slots for others, by the command line; slots swapped in ONNX Runtime."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from svdq_trt.artifact import svdq_file
from svdq_trt.base.errors import ArtifactError
from svdq_trt.lora.apply import layer_shapes
from svdq_trt.models import get_model
from svdq_trt.nn.restore import restore_model
from svdq_trt.runtime import OnnxSession
from tests.harness import builds
from tests.harness.lora_files import make_factors, write_kohya, write_peft

SPEC = get_model("sdxl-tiny")


def build(out: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return builds.build("sdxl-tiny", out, "--arch", "sm_89", *builds.FIXED, *args)


@pytest.fixture(scope="module")
def loras(tmp_path_factory):
    """One of every layer, with tensors for a text encoder; one of the blocks' linears and their neighbours."""
    folder, layers = tmp_path_factory.mktemp("loras"), list(layer_shapes(SPEC))
    text = {"lora_te1_text_model_encoder_layers_0_mlp_fc1.lora_down.weight": torch.ones(4, 8)}
    style = write_kohya(folder / "style.safetensors", make_factors(SPEC, layers, seed=1, size=0.1), SPEC, **text)
    linears = [n for n in layers if "attentions" in n]
    return style, write_peft(folder / "other.safetensors", make_factors(SPEC, linears, rank=16, seed=2, size=0.1))


@pytest.fixture(scope="module")
def built(tmp_path_factory, sdxl_tiny, loras):
    out = tmp_path_factory.mktemp("engines")
    sdxl_tiny.copy(out, "sm_89", check=False)
    done = build(out, "--lora", f"{loras[0]}:0.8", "--lora-slots", "16")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "text encoder tensors" in done.stdout and "LoRA slots: rank 16 a linear" in done.stdout
    return out / "sdxl-tiny-sm_89"


def feed():
    tensors = SPEC.example_inputs(batch=1, height=64, width=64, seed=3)
    return {io.name: t for io, t in zip(SPEC.inputs, tensors, strict=True)}


def db(want, got):
    return float(10 * torch.log10(want.double().square().sum() / (want.double() - got.double()).square().sum()))


def test_manifest_says_what_is_inside_and_the_check_knows_the_lora(built, loras):
    m = json.loads((built / "manifest.json").read_text())
    (style,) = m["loras"]
    assert style["file"] == loras[0].name and style["strength"] == 0.8 and style["text_encoder_tensors"] == 1
    assert len(style["quantized_layers"]) == 100 and len(style["dense_layers"]) == 65 and not style["left_out"]
    nodes, shapes = {q["node"] for q in m["quantized"]}, layer_shapes(SPEC)
    linears = [k["name"] for k in m["kept_16bit"] if len(shapes[k["name"]]) == 2]
    assert m["lora_slots"]["rank"] == 16 and m["lora_slots"]["inputs"] == 2 * (len(nodes) + len(linears))
    assert len(linears) == 29
    # Against the FP16 model with the LoRA merged: 21 to 24 dB by the number of threads, which orders the quantizer's
    # sums. Without the LoRA in the engine it would be 10 to 15.
    (output,) = m["accuracy"]["outputs"]
    assert output["sqnr_db"] > 19
    assert builds.plugin_nodes(m) == sorted({q["node"] for q in m["quantized"]})
    assert {t["name"] for t in m["inputs"]} == {io.name for io in SPEC.inputs}  # slots are not the caller's business


def test_slots_swap_in_onnx_runtime(built, loras):
    with OnnxSession(built, device="cpu", threads=1) as session:
        base = session.run(feed())["out_sample"]
        session.set_lora(loras[1], 0.5)
        once = session.run(feed())["out_sample"]
        views = session.lora.views
        module = restore_model(svdq_file.load(built / "svdq.safetensors"), SPEC)
        for slot in session.lora.table.slots:
            node = module.get_submodule(slot.rows.name)
            if slot.base:
                node.lora_down, node.lora_up = views[slot.down_name], views[slot.up_name]
            else:
                delta = views[slot.up_name].float() @ views[slot.down_name].float()
                node.weight = torch.nn.Parameter((node.weight.float() + delta).half())
        with torch.inference_mode():
            want = SPEC.wrap(module)(*feed().values())
        # Runtimes agree to some 35 dB (see test_tiny.py); the LoRA changes the output by 10 to 15.
        assert db(want, once) > 25 and db(want, base) < 18, (db(want, once), db(want, base))
        session.set_lora([(loras[1], 1.0)], 0.0)
        assert torch.equal(session.run(feed())["out_sample"], base)
        session.set_lora(loras[1], 0.5)
        assert torch.equal(session.run(feed())["out_sample"], once)
        with pytest.raises(ArtifactError, match="a convolution, which has no slot"):
            session.set_lora(loras[0])
        assert torch.equal(session.run(feed())["out_sample"], once)
        session.set_lora(None)
        assert torch.equal(session.run(feed())["out_sample"], base)


def test_another_lora_quantizes_nothing_again(built, loras):
    done = build(built.parent, "--lora", f"{loras[0]}:0.5", "--lora", f"{loras[1]}:-0.25", "--no-check")
    assert done.returncode == 0, done.stderr
    stages = {line.split()[0]: line.split()[-1] for line in done.stderr.splitlines() if line.startswith("  ")}
    assert stages["quantize"] == "reused" and "reused" not in stages["lora"] and stages["export"] != "reused"
    m = json.loads((built / "manifest.json").read_text())
    assert [lora["strength"] for lora in m["loras"]] == [0.5, -0.25] and m["lora_slots"] == {}
    assert not (built / "lora_slots.safetensors").exists()
    with OnnxSession(built, device="cpu", threads=1) as session:
        assert np.isfinite(session.run(feed())["out_sample"].numpy()).all()


def test_bad_loras_are_reported_at_once(built, loras, tmp_path):
    from safetensors.torch import save_file

    save_file({"lora_unet_x.lora_down.weight": torch.ones(4, 4)}, tmp_path / "bad.safetensors")
    (tmp_path / "lora.pt").write_bytes(b"x")
    for args, code, text in (
        (("--lora", str(tmp_path / "lora.pt")), 2, "want PATH.safetensors"),
        (("--lora", str(tmp_path / "none.safetensors:0.5")), 2, "no such file"),
        (("--lora", f"{loras[0]}:nan"), 2, "strength nan, want a finite number"),
        (("--lora-slots", "8"), 2, "--lora-slots: 8, want a multiple of 16"),
        (("--lora", str(tmp_path / "bad.safetensors")), 1, "lora_unet_x: no layer of this model"),
    ):
        done = build(built.parent, "--no-check", *args)
        assert done.returncode == code and text in done.stderr and "Traceback" not in done.stderr, done.stderr
