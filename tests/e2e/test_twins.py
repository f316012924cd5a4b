"""Tiny twins through the whole path, each compared with its 16-bit model.

What only one model need show (resuming, reuse, options, errors) is in test_first_build.py and test_tiny.py.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from svdq_trt.build.stages.quantize import FILE
from svdq_trt.contract.archs import AUTO_FORMAT
from svdq_trt.contract.attention import ATTENTION_OPS
from svdq_trt.contract.formats import Activation
from svdq_trt.contract.ops import MLP_OPS, OPS, linear_names
from svdq_trt.models import BUILT_TWINS, TWIN_ARCHS, TWINS, get_model
from svdq_trt.models.recipe import weight_layers
from tests.harness.builds import FIXED, HAS_TIME, build, plugin_nodes, some_minutes
from tests.harness.expected import MARGIN_DB, expected_sqnr
from tests.harness.published import assert_reference

#: the twin that is built for text of several lengths, with masks, and one of them
TEXT_TWIN, LONG_TEXT = "pixart-tiny", 41


#: with a ControlNet's residuals among its inputs; for sm_89 also in test_step_cache.py
CONTROLLED = pytest.param("flux1-tiny-with-controlnet", marks=some_minutes)


#: in test_tiny.py
ELSEWHERE = "sdxl-tiny"
#: none of their attentions is one of the ops'; see tests/cpu/build/test_attention_choice.py
TENSORRTS_ATTENTION = ("chroma-tiny", "t5-tiny")
#: before a linear reads what an activation gives, it is multiplied by another linear's output
GATED = ("t5-tiny",)
#: twin -> the least cosine of an output; T5's attention, which has no scale, makes large differences of small ones:
#: of nodes of 26 to 41 dB one expects an output of 14 dB
COSINES = {"t5-tiny": 0.95}


@pytest.mark.parametrize("name", [*(name for name in TWINS if name != ELSEWHERE), CONTROLLED])
def test_twin_is_built_and_agrees_with_its_16_bit_model(name, tmp_path):
    """For all archs and for ranges of sizes; where a run has no time for that, for the first arch and one size."""
    in_full = HAS_TIME or all(name in twins for twins in BUILT_TWINS.values())
    archs, sizes = (TWIN_ARCHS, ()) if in_full else (TWIN_ARCHS[:1], FIXED)
    texts = ("--tokens", f"24:24:{LONG_TEXT}") if name == TEXT_TWIN else ()
    done = build(name, tmp_path, *(w for arch in archs for w in ("--arch", f"sm_{arch}")), *sizes, *texts)
    assert done.returncode == 0, done.stdout + done.stderr
    for arch in archs:
        check(name, tmp_path / f"{name}-sm_{arch}", AUTO_FORMAT[arch][0].name)
    if in_full:
        run_at_other_sizes(name, tmp_path / f"{name}-sm_{TWIN_ARCHS[0]}")
    assert_reference(get_model(name), tmp_path / f"{name}-shared" / "model-fp16.onnx")


@some_minutes
@pytest.mark.parametrize("name", [name for name in TWINS if name not in TENSORRTS_ATTENTION])
def test_twin_is_built_with_the_plugins_attention(name, tmp_path):
    """Attentions are layers of the plugin too, those that `SVDQAttention*` nodes of the graph are."""
    import onnx

    words = [w for arch in TWIN_ARCHS for w in ("--arch", f"sm_{arch}")]
    done = build(name, tmp_path, *words, *FIXED, "--attention", "plugin", "--no-check")
    assert done.returncode == 0, done.stdout + done.stderr
    for arch in TWIN_ARCHS:
        folder = tmp_path / f"{name}-sm_{arch}"
        m = json.loads((folder / "manifest.json").read_text())
        graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
        attentions = {n.name for n in graph.node if n.op_type in ATTENTION_OPS}
        assert attentions and attentions <= set(m["plugin_layers"]) and m["attention"] == "plugin"


def check(name: str, folder: Path, fmt: str) -> None:
    m = json.loads((folder / "manifest.json").read_text())
    assert (folder / "model.plan").stat().st_size == m["plan"]["bytes"]
    spec = get_model(name)
    weight_only = {group.weight_only for group in spec.groups(spec.build())}  # Chroma and Krea 2 have none
    assert {q["format"] for q in m["quantized"]} == {"w4a16" if one else fmt for one in weight_only}
    # TensorRT compiled exactly the manifest's nodes into plugin layers, and no layer is unaccounted for.
    assert plugin_nodes(m) == sorted({q["node"] for q in m["quantized"]})
    check_feed_forwards(name, folder, m)
    assert all(k["reason"] for k in m["kept_16bit"])
    names = {q["name"] for q in m["quantized"]} | {k["name"] for k in m["kept_16bit"]}
    assert names == set(weight_layers(get_model(name).build()))
    check_unsigned(name, folder, m, fmt)
    outputs = m["accuracy"]["outputs"]
    assert [one["name"] for one in outputs] == [io.name for io in get_model(name).outputs]
    assert min(one["sqnr_db"] for one in outputs) > expected(name, folder) - MARGIN_DB, outputs
    assert min(one["cosine"] for one in outputs) > COSINES.get(name, 0.98), outputs


def expected(name: str, folder: Path) -> float:
    """The SQNR that the nodes' own errors give the output."""
    import torch

    from svdq_trt.artifact import svdq_file
    from svdq_trt.checkpoint import load

    spec = get_model(name)
    inputs = spec.example_inputs(seed=9, dtype=torch.float32)
    return expected_sqnr(spec, load(spec, random_seed=0).float(), svdq_file.read_nodes(folder / FILE), inputs)


def check_feed_forwards(name: str, folder: Path, m: dict) -> None:
    """A linear with an activation is one op with the linear that reads it, in the same format, and one layer."""
    import onnx

    spec, formats = get_model(name), {q["node"]: q["format"] for q in m["quantized"]}
    fused = {OPS[op].linears[0].activation for op in MLP_OPS}
    first = {g.node for g in spec.groups(spec.build()) if g.activation in fused and name not in GATED}
    pairs = {layer for layer in m["plugin_layers"] if len(linear_names(layer)) == 2}
    assert {linear_names(layer)[0] for layer in pairs} == first & set(formats), pairs
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    assert {n.name for n in graph.node if n.op_type in MLP_OPS} == pairs
    assert first or name in ("sana-tiny", *GATED)  # SANA's feed-forward has a convolution in the middle


def check_unsigned(name: str, folder: Path, m: dict, fmt: str) -> None:
    """Artifact, graph and manifest agree on the codes after GELU; run_at_other_sizes then runs them."""
    import onnx

    from svdq_trt.artifact import svdq_file

    spec = get_model(name)
    want = {n.name: (n.act_unsigned, n.act_shift) for n in svdq_file.read_nodes(folder / "svdq.safetensors")}
    behind_gelu = {g.node for g in spec.groups(spec.build()) if g.x_from is not Activation.NONE}
    assert {node for node, codes in want.items() if codes != (False, 0.0)} == (behind_gelu if fmt == "int4" else set())
    assert {q["node"]: (q["act_unsigned"], q["act_shift"]) for q in m["quantized"]} == want
    graph = onnx.load(folder / "model.onnx", load_external_data=False).graph
    got = {}
    for node in (n for n in graph.node if n.domain == "svdq"):
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        for one, linear in zip(linear_names(node.name), OPS[node.op_type].linears, strict=True):
            unsigned, shift = (attributes[linear.prefix + a] for a in ("act_unsigned", "act_shift"))
            got[one] = bool(unsigned), shift
    assert got == want


def run_at_other_sizes(name: str, folder: Path) -> None:
    """One file for every batch and resolution of the profile: as the torch module, at sizes it was not traced at."""
    import numpy as np
    import torch

    from svdq_export import write_float32_twin
    from svdq_trt.artifact import svdq_file
    from svdq_trt.evaluate.onnx_run import run_onnx
    from svdq_trt.nn.restore import restore_model

    spec = get_model(name)
    module = spec.wrap(restore_model(svdq_file.load(folder / "svdq.safetensors"), spec)).float()
    onnx, out = write_float32_twin(folder / "model.onnx"), folder / "other.npz"
    low, _, high = spec.profile.height
    for batch, height, width in ((spec.profile.batch[2], low, 2 * low), (1, high, low)):
        tokens = LONG_TEXT if name == TEXT_TWIN else None
        inputs = spec.example_inputs(batch, height, width, seed=9, dtype=torch.float32, tokens=tokens)
        run_onnx(onnx, [{io.name: t.numpy() for io, t in zip(spec.inputs, inputs, strict=True)}], out)
        with torch.inference_mode():
            found = spec.run(module, inputs)
        for output, tensor in found.items():
            want, got = tensor.double().numpy(), np.load(out)[output][0].astype(np.float64)
            sqnr = 10 * np.log10((want**2).sum() / ((want - got) ** 2).sum())
            assert sqnr > 28, (output, batch, height, width, sqnr)  # a rounding may flip a 4-bit code; see test_tiny.py
