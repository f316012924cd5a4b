"""build --quantized, import and to-nunchaku: the graph of an imported model is that of the one it was packed from."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from svdq_trt import calibrate
from svdq_trt.base.errors import ArtifactError, UsageError
from svdq_trt.build.config import BuildConfig
from svdq_trt.build.stage import File
from svdq_trt.build.stages.export import Export
from svdq_trt.build.stages.take_quantized import TakeQuantized
from svdq_trt.build.work import plan_work
from svdq_trt.checkpoint import load
from svdq_trt.cli import main
from svdq_trt.contract.formats import INT4
from svdq_trt.interop import digest
from svdq_trt.models import get_model
from svdq_trt.quantize.preset import get_preset
from svdq_trt.quantize.run import quantize_model

KV = ("*.attn2.to_kv",)  # nunchaku keeps cross-attention K/V in 16 bit; so does this model then


def silent(*_):
    pass


@pytest.fixture(scope="module")
def packed(tmp_path_factory):
    """Our pixart-tiny, int4, and the same as a nunchaku file, by the command."""
    folder = tmp_path_factory.mktemp("packed")
    torch.set_num_threads(1)
    spec = get_model("pixart-tiny")
    module = load(spec, random_seed=2)
    groups = spec.groups(module, KV)
    data = calibrate.collect(module, spec, groups, data=None, progress=silent)
    ours, theirs = folder / "svdq.safetensors", folder / "nunchaku.safetensors"
    quantize_model(module, spec, groups, data, INT4, 16, get_preset("fast"), ours, "k" * 20, silent, skip=KV)
    assert main(["to-nunchaku", str(folder), "--out", str(theirs)]) == 0
    return ours, theirs


def test_old_name_of_the_command_still_works_and_says_so(packed, tmp_path, capsys):
    ours, theirs = packed
    assert main(["export", str(ours), "--out", str(tmp_path / "theirs.safetensors")]) == 0
    assert "export is now called to-nunchaku" in capsys.readouterr().err
    assert (tmp_path / "theirs.safetensors").read_bytes() == theirs.read_bytes()
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "export" not in capsys.readouterr().out


def graph(artifact_path, folder):
    """model.onnx and its data, as bytes, with dynamic sizes."""
    spec = get_model("pixart-tiny")
    ranges = {s: getattr(spec.profile, s)[::2] for s in ("batch", "height", "width", "tokens")}
    Export(spec.name, File("", path=artifact_path), ranges, 0, True, "int4", out=folder / "model.onnx").run(silent)
    return (folder / "model.onnx").read_bytes(), (folder / "model.onnx.data").read_bytes()


def test_graph_is_that_of_the_model_it_was_packed_from(packed, tmp_path):
    ours, theirs = packed
    result = TakeQuantized("pixart-tiny", File("", path=theirs), out=tmp_path / "svdq.safetensors").run(silent)
    assert result.rank == 16 and result.nodes == 12 and result.mean_sqnr_db is None
    (note,) = result.notes
    assert note.startswith("transformer_blocks.0.ff.net.2 and 1 more: read as taking unsigned activation codes")
    reasons = {k.name: k.reason for k in result.kept_16bit}
    assert sum("16 bit in the given checkpoint" in r for r in reasons.values()) == 4
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    assert graph(ours, tmp_path / "a") == graph(tmp_path / "svdq.safetensors", tmp_path / "b")


def test_own_artifact_and_engine_folder_are_taken_as_they_are(packed, tmp_path):
    ours, _ = packed
    for path in (ours, ours.parent):
        stage = TakeQuantized("pixart-tiny", File("", path=path), out=tmp_path / "svdq.safetensors")
        assert stage.run(silent).mean_sqnr_db > 20
        assert (tmp_path / "svdq.safetensors").read_bytes() == ours.read_bytes()
    with pytest.raises(ArtifactError, match="a model 'pixart-tiny', want pixart-sigma"):
        replace(stage, model="pixart-sigma").run(silent)


def test_import_command(packed, tmp_path, capsys):
    out = tmp_path / "a.safetensors"
    assert main(["import", str(packed[1]), "--model", "pixart-tiny", "--out", str(out)]) == 0
    assert "pixart-tiny from nunchaku, int4 rank 16, 12 nodes" in capsys.readouterr().out
    assert load_file(out)
    assert main(["import", str(packed[1]), "--model", "flux1-tiny", "--out", str(out)]) == 1
    assert "_class_name" in capsys.readouterr().err


def test_plan_of_work(packed, tmp_path):
    ours, theirs = packed

    def plan(path, *archs, **more):
        config = {"model": "pixart-tiny", "archs": archs, "out": tmp_path, "quantized": path, "check": False}
        return plan_work(BuildConfig(**config, **more))

    work = plan(theirs, 89, 120)
    assert {e.format for e in work.engines} == {INT4} and work.engines[0].shared.name == "int4-imported"
    assert work.quantized.id == digest(theirs, work.spec) != plan(ours, 89).quantized.id
    with pytest.raises(UsageError, match="--format: nvfp4, want auto or int4"):
        plan(theirs, 89, format="nvfp4")


def test_check_without_16_bit_weights_is_refused(packed, tmp_path):
    with pytest.raises(UsageError, match="a check without 16-bit weights"):
        BuildConfig(model="pixart-tiny", archs=(89,), out=tmp_path, quantized=packed[1])


def test_format_without_kernels_names_the_archs_that_have_it(quantized, tmp_path):
    path = quantized("pixart-tiny", "nvfp4")
    with pytest.raises(UsageError, match=r"sm_89 for .* nvfp4, want one of sm_90, sm_120"):
        plan_work(BuildConfig(model="pixart-tiny", archs=(89,), out=tmp_path, quantized=path, check=False))
