"""The report of an engine folder: what is read for it, and that a LoRA is not an error of the quantizer."""

from __future__ import annotations

import shutil

import pytest
import torch
from safetensors.torch import save_file

from svdq_trt import calibrate, cli
from svdq_trt.artifact import svdq_file
from svdq_trt.artifact.manifest import to_json
from svdq_trt.base.errors import ArtifactError
from svdq_trt.checkpoint import identify_weights, load
from svdq_trt.contract.formats import INT4
from svdq_trt.evaluate import report as report_module
from svdq_trt.lora.apply import LoraRequest, apply_loras
from svdq_trt.models import get_model
from svdq_trt.quantize.preset import PRESETS
from svdq_trt.quantize.run import quantize_model
from tests.harness.manifests import change_manifest, file_entry, quantized_entry, write_manifest

SPEC = get_model("pixart-tiny")
SKIP = ("transformer_blocks.1.*", "*.attn2.*", "*.ff.*")  # two nodes are left


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    """An engine folder with the files that a report reads, and its shared folder."""
    out = tmp_path_factory.mktemp("engines")
    folder = out / "pixart-tiny-sm_89"
    folder.mkdir()
    module = load(SPEC, random_seed=0)
    groups = SPEC.groups(module, SKIP)
    calibration = calibrate.collect(module, SPEC, groups, samples=1, height=64, width=64)
    calibration.save(out / "pixart-tiny-shared" / "calib.safetensors")
    quantize_model(
        module,
        SPEC,
        groups,
        calibration,
        INT4,
        16,
        PRESETS["fast"],
        folder / "svdq.safetensors",
        "key",
        lambda *_: None,
        skip=SKIP,
    )
    config = {
        "checkpoint": None,
        "random_weights": 0,
        "skip": list(SKIP),
        "quantized": None,
        "preset": "fast",
        "calibration": None,
    }
    write_manifest(
        folder,
        model=SPEC.name,
        rank=16,
        backend={},
        plan={},
        quantized=[quantized_entry(member, g.node) for g in groups for member in g.members],
        fp16_weight_bytes=1,
        quantized_weight_bytes=1,
        config=config,
    )
    return folder


@pytest.fixture
def report(monkeypatch):
    """Write the report of a folder; returns its page's facts and error splits."""

    def run(folder):
        pages = []
        monkeypatch.setattr(report_module, "render", lambda *args: pages.append(args) or "")
        report_module.write_report(folder, 1, lambda *_: None)
        _, facts, *_, splits, _ = pages[0]
        return dict(facts), splits

    return run


def test_lora_is_not_counted_as_an_error(engine, report, tmp_path):
    copy, source = tmp_path / engine.name, svdq_file.load(engine / "svdq.safetensors")
    shutil.copytree(engine, copy)
    shutil.copytree(engine.parent / "pixart-tiny-shared", tmp_path / "pixart-tiny-shared")
    node, rng, lora = source.nodes[0], torch.Generator().manual_seed(0), {}
    for member, rows in zip(node.members, node.member_rows, strict=True):
        lora[f"transformer.{member}.lora_A.weight"] = torch.randn(4, node.k, generator=rng)
        lora[f"transformer.{member}.lora_B.weight"] = torch.randn(rows, 4, generator=rng)
    save_file(lora, tmp_path / "style.safetensors")
    summary = apply_loras(
        engine / "svdq.safetensors",
        [LoraRequest(tmp_path / "style.safetensors")],
        SPEC,
        False,
        copy / "svdq.safetensors",
        lambda *_: None,
    )
    change_manifest(copy, loras=[to_json(lora) for lora in summary])
    assert svdq_file.load(copy / "svdq.safetensors").nodes[0].rank > node.rank

    (plain_facts, plain), (facts, splits) = report(engine), report(copy)
    assert set(plain) == {n.name for n in source.nodes} and splits == plain
    assert plain[node.name]["both"] == pytest.approx(node.sqnr_db, abs=0.1)
    assert facts.pop("LoRA").startswith("style.safetensors at 1; not in the figures") and facts == plain_facts


def test_without_layers_nothing_but_the_folder_is_read(engine, tmp_path):
    copy = tmp_path / engine.name
    shutil.copytree(engine, copy)
    assert cli.main(["report", str(copy), "--layers", "0"]) == 0
    assert "<h2>Where errors" not in (copy / "report.html").read_text()
    with pytest.raises(ArtifactError, match=r"calib.safetensors: missing, want the calibration .* --layers 0"):
        report_module.write_report(copy, 1, lambda *_: None)


def test_calibration_and_weights_are_those_of_the_engine(engine, tmp_path):
    """Of the same layers, but written by a later build; and a checkpoint that was edited, here another seed."""
    copy, shared = tmp_path / engine.name, tmp_path / "pixart-tiny-shared"
    shutil.copytree(engine, copy)
    shutil.copytree(engine.parent / "pixart-tiny-shared", shared)
    weights = {"source": "random weights, seed 0", "digest": identify_weights(SPEC, random_seed=0).digest, "files": []}
    collected = file_entry(shared / "calib.safetensors")["sha256"]
    inputs = {"source": "synthetic", "digest": "", "collected": collected}
    origin = {"date": "", "platform": "", "code": "", "weights": weights, "calibration": inputs}
    change_manifest(copy, origin=origin)
    report_module.write_report(copy, 1, lambda *_: None)
    change_manifest(copy, origin=origin | {"weights": weights | {"digest": "sha256:0"}})
    with pytest.raises(ArtifactError, match=r"weights that have changed since the engine was built .*seed 0"):
        report_module.write_report(copy, 1, lambda *_: None)
    change_manifest(copy, origin=origin | {"calibration": inputs | {"collected": ""}})
    with pytest.raises(ArtifactError, match=r"calib\.safetensors: another build's, want the calibration.*--force"):
        report_module.write_report(copy, 1, lambda *_: None)
    change_manifest(copy, origin=origin)
    calibration = calibrate.Calibration.load(shared / "calib.safetensors")
    calibrate.Calibration({n: 2 * a for n, a in calibration.amax.items()}, calibration.x, calibration.meta).save(
        shared / "calib.safetensors"
    )
    with pytest.raises(ArtifactError, match=r"calib\.safetensors: another SHA-256 than the manifest's.*--layers 0"):
        report_module.write_report(copy, 1, lambda *_: None)


def test_a_damaged_quantized_model_is_refused(engine, tmp_path):
    copy = tmp_path / engine.name
    shutil.copytree(engine, copy)
    change_manifest(copy, artifact=file_entry(copy / "svdq.safetensors"))
    content = bytearray((copy / "svdq.safetensors").read_bytes())
    content[-8] ^= 1
    (copy / "svdq.safetensors").write_bytes(content)
    with pytest.raises(ArtifactError, match=r"svdq\.safetensors: another SHA-256"):
        report_module.write_report(copy, 0, lambda *_: None)


def test_calibration_of_another_build_is_refused(engine, tmp_path):
    copy = tmp_path / engine.name
    shutil.copytree(engine, copy)
    other = calibrate.Calibration({"other": torch.ones(64)}, {"other": torch.ones(4, 64).half()}, {})
    other.save(tmp_path / "pixart-tiny-shared" / "calib.safetensors")
    with pytest.raises(ArtifactError, match="made for other layers"):
        report_module.write_report(copy, 1, lambda *_: None)
