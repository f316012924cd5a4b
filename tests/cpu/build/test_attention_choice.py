"""--attention: what a build makes of it for each arch, and what it refuses before any work."""

from __future__ import annotations

import inspect
from dataclasses import replace

import pytest

from svdq_trt import cli
from svdq_trt.base.errors import EXIT_USAGE, UsageError
from svdq_trt.build import graph
from svdq_trt.build.config import BuildConfig
from svdq_trt.build.stage import File
from svdq_trt.build.stages.export import Export, Exported
from svdq_trt.build.stages.reference_export import ReferenceExport
from svdq_trt.build.work import plan_work
from svdq_trt.contract import archs
from svdq_trt.contract.archs import ATTENTION_KERNELS, ATTENTION_MEASURED, KERNELS, resolve_attention
from tests.harness.foreign import save


def work(tmp_path, model="sdxl-tiny", archs=(89, 90), **more):
    return plan_work(BuildConfig(model, archs, tmp_path, random_weights=0, format="w4a8", **more))


def test_tables_name_known_archs_and_nothing_measured_is_without_a_kernel():
    assert ATTENTION_MEASURED.keys() <= KERNELS.keys()
    for sizes in ATTENTION_MEASURED.values():
        assert set(sizes) <= set(ATTENTION_KERNELS)


@pytest.mark.parametrize(
    ("choice", "arch", "want"),
    [
        ("auto", 90, (64, 72, 128)),
        ("auto", 89, ()),
        ("auto", 120, ()),
        ("plugin", 90, tuple(range(8, 129, 8))),
        ("plugin", 80, tuple(range(8, 129, 8))),
        ("tensorrt", 90, ()),
    ],
)
def test_choice_is_a_set_of_head_sizes(choice, arch, want):
    assert resolve_attention(choice, arch) == want


def test_graphs_that_differ_in_attention_share_the_quantized_model(tmp_path):
    made = work(tmp_path)
    assert [fmt.name for fmt in made.formats()] == ["w4a8"]
    shared = tmp_path / "sdxl-tiny-shared"
    assert {folder: engine.attention for folder, engine in made.graphs().items()} == {
        shared / "w4a8-r32": (),
        shared / "w4a8-r32-attention": (64, 72, 128),
    }
    assert len(work(tmp_path, attention="tensorrt").graphs()) == 1
    assert len(work(tmp_path, archs=(80, 89)).graphs()) == 1


def test_export_stage_runs_again_for_another_attention(tmp_path):
    stage = Export("sdxl-tiny", File("a", path=tmp_path), {}, 0, True, "w4a8", out=tmp_path / "model.onnx")
    other = replace(stage, attention=(64, 128))
    assert stage.key != other.key != replace(stage, attention=(64,)).key


def test_reference_keeps_tensorrts_attention():
    assert "attention" not in {name for name in ReferenceExport.__dataclass_fields__}
    assert inspect.signature(graph.export_model).parameters["attention"].default == ()


def test_result_says_whose_attention_the_graph_has():
    assert Exported((), ("SVDQAttentionCross", "SVDQLinearInt4"), 1, 1).attention == "plugin"
    assert Exported((), ("SVDQLinearInt4",), 1, 1).attention == "tensorrt"


@pytest.mark.parametrize(
    ("model", "choice", "message"),
    [
        ("sdxl-tiny", "own", "--attention: 'own', want one of auto, plugin, tensorrt"),
        (
            "pixart-tiny",
            "plugin",
            r"transformer_blocks\.0\.attn1 of pixart-tiny has heads of 32, want heads of 64, 72",
        ),
    ],
)
def test_what_no_kernel_can_run_is_refused_before_any_work(tmp_path, model, choice, message, monkeypatch):
    monkeypatch.setattr(archs, "ATTENTION_KERNELS", (64, 72))  # no known model has heads that there is no kernel for
    with pytest.raises(UsageError, match=message):
        work(tmp_path, model, (89,), attention=choice)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("model", ["sdxl-tiny", "flux1-tiny", "sd3-tiny", "sana-tiny", "pixart-tiny", "krea2-tiny"])
@pytest.mark.parametrize("arch", [89, 90])
def test_models_whose_attentions_all_have_kernels_are_taken(tmp_path, model, arch):
    assert work(tmp_path, model, (arch,), attention="plugin").engines[0].attention == ATTENTION_KERNELS


#: Chroma's mask is of pairs of tokens, T5's bias is by distance, and a class without a file of ours keeps its code
NONE = ("chroma-tiny", "t5-tiny", "CogView4Transformer2DModel")


@pytest.mark.parametrize("name", NONE)
def test_model_without_an_attention_for_the_plugin_is_refused_before_any_work(tmp_path, name, capsys):
    model = str(save(name, tmp_path / "some-model")) if name.endswith("Model") else name
    words = ["build", "--model", model, "--arch", "sm_89", "--random-weights", "0", "--out", str(tmp_path / "engines")]
    assert cli.main([*words, "--attention", "plugin"]) == EXIT_USAGE
    (line,) = capsys.readouterr().err.splitlines()
    known = "some-model" if name.endswith("Model") else name
    assert line.endswith(
        f"--attention: plugin, but none of the attentions of {known} can be a node of the plugin, want one that an op "
        "SVDQAttention* computes, with q, k and v from quantized nodes. Or use --attention auto."
    )
    assert not (tmp_path / "engines").exists()


@pytest.mark.parametrize("name", NONE)
@pytest.mark.parametrize("choice", ["auto", "tensorrt"])
def test_such_a_model_has_tensorrts_attention_without_a_word(tmp_path, name, choice, capsys):
    model = str(save(name, tmp_path / "some-model")) if name.endswith("Model") else name
    assert len(work(tmp_path, model, (89, 90), attention=choice).engines) == 2
    assert capsys.readouterr() == ("", "")


def test_it_depends_on_what_is_skipped(tmp_path):
    """Where q, k and v stay in 16 bit no attention is the plugin's; where some do, the others are."""
    apart = ("*.attn1.*", "*.attn2.*")
    with pytest.raises(UsageError, match="none of the attentions of sdxl-tiny can be a node of the plugin"):
        work(tmp_path, archs=(89,), attention="plugin", skip=apart)
    assert work(tmp_path, archs=(89,), attention="plugin", skip=apart[:1]).engines
