"""Nunchaku Lite of diffusers: what we write is loaded by its classes, and what we read is what they compute with."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from svdq_trt.artifact import svdq_file
from svdq_trt.base.errors import ArtifactError, ShapeError, SvdqError, UnsupportedError, UsageError
from svdq_trt.cli import main
from svdq_trt.interop import describe, export_checkpoint, import_checkpoint
from svdq_trt.interop.convert import Description
from svdq_trt.interop.linears_export import write_lite
from svdq_trt.models import get_model
from svdq_trt.nn.restore import layer_of, restore_model
from tests.cpu.interop.test_round_trip import assert_same, assert_same_node
from tests.harness import lite_peer as lite

MODELS = ["flux1-tiny", "sdxl-tiny", "pixart-tiny", "sd3-tiny"]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def weights_of(loaded) -> dict[str, torch.Tensor]:
    """[N, K] f64 of every linear that some node has, by diffusers' names; halves of one side by side."""
    parts: dict[str, list[torch.Tensor]] = {}
    for node in sorted(loaded.nodes, key=lambda n: (n.name.endswith(".mlp"), n.name)):  # proj_out.attn comes first
        rows = layer_of(node, loaded.tensors).dequantize().double().split(list(node.member_rows))
        for member, part in zip(node.members, rows, strict=True):
            parts.setdefault(member, []).append(part)
    return {member: torch.cat(part, 1) for member, part in parts.items()}


@pytest.mark.parametrize("fmt", ["int4", "nvfp4"])
@pytest.mark.parametrize("model", MODELS)
def test_diffusers_loads_what_we_write_and_we_read_it_back(quantized, tmp_path, model, fmt):
    spec, source = get_model(model), quantized(model, fmt)
    folder = tmp_path / "lite"
    report = export_checkpoint(source, folder, "nunchaku-lite")
    theirs = dict(lite.load(spec, folder).named_modules())
    before, want = svdq_file.load(source), weights_of(svdq_file.load(source))
    rounded = {note.split(":")[0] for note in report.notes if "rounded again" in note}
    quantized_there = 0
    for name, expected in want.items():
        module = theirs[name]
        if not hasattr(module, "qweight"):
            assert torch.equal(module.weight, expected.to(spec.torch_dtype)), name
            continue
        quantized_there += 1
        limit = 0.2 if name in rounded else 2 * torch.finfo(spec.torch_dtype).eps
        assert (lite.weight(module) - expected).norm() < limit * expected.norm(), name
    assert quantized_there > 5

    assert describe(folder, spec) == Description("nunchaku-lite", fmt)
    import_checkpoint(folder, spec, tmp_path / "back.safetensors")
    after = svdq_file.load(tmp_path / "back.safetensors")
    nodes = {n.name: n for n in after.nodes}
    exact = [n for n in before.nodes if n.format == fmt and n.name in nodes]
    assert len(exact) > 5 and {n.name for n in before.nodes if n.format == fmt} - nodes.keys() == set()
    for old in exact:
        assert_same_node(before, after, old, nodes[old.name])
    restore_model(after, spec)
    export_checkpoint(tmp_path / "back.safetensors", tmp_path / "again", "nunchaku-lite")
    assert_same(load_file(folder / WEIGHTS), load_file(tmp_path / "again" / WEIGHTS))
    assert (folder / "config.json").read_text() == (tmp_path / "again" / "config.json").read_text()


def test_halves_with_scales_of_rows_leave_in_16_bit(quantized, tmp_path):
    """As a file of nunchaku's may have them: no one smoothing makes their rows alike."""
    spec, name = get_model("flux1-tiny"), "single_transformer_blocks.0.proj_out"
    loaded = svdq_file.load(quantized("flux1-tiny", "nvfp4"))
    loaded.tensors[f"{name}.mlp.wscale2"] *= torch.linspace(1, 2, 128)
    done = write_lite(loaded, spec)
    assert torch.equal(done.tensors[f"{name}.weight"], weights_of(loaded)[name].float().to(spec.torch_dtype))
    assert f"{name}: in 16 bit, as its halves have scales of rows that differ." in done.notes


@pytest.fixture(scope="module")
def written(quantized, tmp_path_factory):
    """pixart-tiny, int4, as a Nunchaku Lite folder."""
    folder = tmp_path_factory.mktemp("lite")
    assert main(["to-lite", str(quantized("pixart-tiny", "int4")), "--out", str(folder)]) == 0
    return folder


def test_a_file_is_no_folder(quantized, tmp_path, capsys):
    (tmp_path / "x").write_text("")
    line = ["to-lite", str(quantized("pixart-tiny", "int4")), "--out", str(tmp_path / "x")]
    assert main(line) == UsageError.exit_code
    assert "a folder that can be written" in capsys.readouterr().err


def changed(folder, to, edit):
    """A copy of the folder; `edit` changes its quantization_config, tensors and metadata."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    with safe_open(to / WEIGHTS, framework="pt") as file:
        metadata = file.metadata()
    tensors = load_file(to / WEIGHTS)
    edit(config["quantization_config"], tensors, metadata)
    (to / "config.json").write_text(json.dumps(config))
    save_file(tensors, to / WEIGHTS, metadata=metadata)
    return to


def without_hints(_, __, metadata):
    del metadata["svdq_trt"]


def test_codes_behind_a_gelu_are_signed_there(written, tmp_path):
    """A file of another tool's: nothing is known of ours, and nothing is shifted."""
    folder = changed(written, tmp_path / "theirs", without_hints)
    report = import_checkpoint(folder, get_model("pixart-tiny"), tmp_path / "a.safetensors")
    loaded = svdq_file.load(tmp_path / "a.safetensors")
    nodes = [n for n in loaded.nodes if n.name.endswith("ff.net.2")]
    assert nodes and not any(n.act_unsigned for n in loaded.nodes) and not report.notes
    bias = lite.bias(dict(lite.load(get_model("pixart-tiny"), folder).named_modules())[nodes[0].name])
    assert torch.equal(loaded.tensors[f"{nodes[0].name}.bias"].double(), bias)


TARGET = "transformer_blocks.0.ff.net.2"


@pytest.mark.parametrize(
    "kind,text,edit",
    [
        (ArtifactError, "quantized, but no target", lambda q, t, m: q["svdq_w4a4"]["targets"].remove(TARGET)),
        (ArtifactError, "a target, but not quantized", lambda q, t, m: q["svdq_w4a4"]["targets"].append("proj_out")),
        (ArtifactError, "group_size", lambda q, t, m: q["svdq_w4a4"].update(group_size=16)),
        (ArtifactError, "is nvfp4, want int4", lambda q, t, m: q["svdq_w4a4"].update(precision="nvfp4", group_size=16)),
        (ArtifactError, "targets", lambda q, t, m: q["svdq_w4a4"].update(targets="all")),
        (ArtifactError, "no targets", lambda q, t, m: [q.pop("svdq_w4a4"), q.pop("awq_w4a16", None)]),
        (UnsupportedError, "'sdnq'", lambda q, t, m: q.update(quant_method="sdnq")),
        (ShapeError, "shape", lambda q, t, m: t.update({f"{TARGET}.qweight": t[f"{TARGET}.qweight"][:64].clone()})),
        (ArtifactError, "no tensor", lambda q, t, m: t.pop(f"{TARGET}.smooth_factor")),
        (ShapeError, "no place for", lambda q, t, m: t.update({f"{TARGET}.smooth_factor_orig": torch.ones(4)})),
    ],
)
def test_folders_that_contradict_themselves_are_refused(written, tmp_path, kind, text, edit):
    folder = changed(written, tmp_path / "changed", edit)
    with pytest.raises(kind, match=text) as caught:
        import_checkpoint(folder, get_model("pixart-tiny"), tmp_path / "a.safetensors")
    assert isinstance(caught.value, SvdqError) and not (tmp_path / "a.safetensors").exists()


def manifest(folder):
    """The header's runtime_manifest that says what the folder's config.json does."""
    quantization = json.loads((folder / "config.json").read_text())["quantization_config"]
    targets = [
        {"checkpoint_prefix": name, "nunchaku_op": op, "precision": "int4", "source_modules": [name]}
        for op in ("svdq_w4a4", "awq_w4a16")
        for name in quantization.get(op, {}).get("targets", ())
    ]
    return {"schema": "nunchaku_lite.runtime_manifest", "version": 1, "targets": targets}


def test_a_single_file_says_it_in_its_header(written, tmp_path):
    spec, said = get_model("pixart-tiny"), manifest(written)
    folder = changed(written, tmp_path / "x", lambda q, t, m: m.update(runtime_manifest=json.dumps(said)))
    (folder / WEIGHTS).rename(tmp_path / "lite.safetensors")
    import_checkpoint(tmp_path / "lite.safetensors", spec, tmp_path / "a.safetensors")
    import_checkpoint(written, spec, tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    said["targets"][0]["nunchaku_op"] = "adanorm_awq_w4a16"
    tensors = load_file(tmp_path / "lite.safetensors")
    save_file(tensors, tmp_path / "lite.safetensors", metadata={"runtime_manifest": json.dumps(said)})
    with pytest.raises(UnsupportedError, match="adanorm_awq_w4a16"):
        import_checkpoint(tmp_path / "lite.safetensors", spec, tmp_path / "c.safetensors")


def test_a_single_file_that_says_nothing_is_not_taken_for_nunchakus(written, tmp_path):
    save_file(load_file(written / WEIGHTS), tmp_path / "lite.safetensors")
    with pytest.raises(UnsupportedError, match=r"no '.*smooth_factor_orig'"):
        import_checkpoint(tmp_path / "lite.safetensors", get_model("pixart-tiny"), tmp_path / "a.safetensors")
