"""A graph in pieces is the whole graph: the same bits, each weight once, sizes that follow from the inputs'."""

from __future__ import annotations

import dataclasses
import re

import onnx_ir as ir
import pytest
import torch

from svdq_trt.artifact.manifest import TensorProfile
from svdq_trt.base.errors import ArtifactError, UnsupportedError, UsageError
from svdq_trt.build.piece_profiles import piece_profiles
from svdq_trt.build.stages.plan import memory_together
from svdq_trt.checkpoint.folder import open_folder
from svdq_trt.contract.step_cache import FIRST, LAST, PIECES, RESIDUAL
from svdq_trt.models import MODELS, get_model
from svdq_trt.models.first_block import find_cuts
from svdq_trt.runtime import OnnxSession
from tests.harness import manifests
from tests.harness.foreign import save
from tests.harness.in_pieces import FIXED, spec_of, write_folder

#: with sizes that stay open: one whose graph has half of an input's size
DYNAMIC = "sd3-tiny"
NAMES = [
    DYNAMIC,
    "flux1-tiny",
    "flux1-tiny-with-controlnet",
    "flux2-tiny",
    "chroma-tiny",
    "longcat-tiny",
    "krea2-tiny",
    "pixart-tiny",
    "sana-tiny",
    "qwen-image-tiny",
    "z-image-tiny",
    "wan-tiny",
]


@pytest.mark.parametrize("name", NAMES)
def test_pieces_are_the_whole(name, tmp_path):
    spec = spec_of(name)
    profiles = write_folder(tmp_path, spec, {} if name == DYNAMIC else FIXED)
    with OnnxSession(tmp_path) as pieces, OnnxSession(tmp_path / "model.onnx") as whole:
        for sizes in ({"batch": 2, "height": 128, "width": 64}, {}) if name == DYNAMIC else (FIXED,):
            opt = {symbol: value[1] if isinstance(value, tuple) else value for symbol, value in sizes.items()}
            values = spec.example_inputs(**opt, seed=5)
            feed = {io.name: value for io, value in zip(spec.inputs, values, strict=True)}
            want, got = whole.run(feed), pieces.run(feed)
            for io in spec.outputs:
                assert_equal(got[io.name], want[io.name])
    parameters = {name for name, _ in spec.build().named_parameters()}
    found = [one for piece in PIECES for one in weights(tmp_path / f"{piece}.onnx", parameters)]
    assert sorted(found) == weights(tmp_path / "model.onnx", parameters)  # each once
    assert_crossing(tmp_path, profiles)


def assert_equal(got, want):
    """Bit for bit, but for 16 bits: ONNX Runtime's CPU rounds to them less often inside a graph than between two."""
    if want.dtype in (torch.float16, torch.bfloat16):
        assert (got.double() - want.double()).square().mean() < 1e-5 * want.double().square().mean()
    else:
        assert torch.equal(got, want)


def weights(path, parameters):
    initializers = ir.load(path).graph.initializers.items()
    return sorted((name, value.const_value.nbytes) for name, value in initializers if name in parameters)


def assert_crossing(folder, profiles):
    """What a later piece takes is an input of the model or what an earlier one makes, in a range that is known."""
    made = {profile.name for profile in profiles}
    for piece in PIECES:
        graph = ir.load(folder / f"{piece}.onnx").graph
        found = {profile.name: profile for profile in piece_profiles(folder / f"{piece}.onnx", profiles)}
        assert list(found) == [value.name for value in graph.inputs] and found.keys() <= made
        assert all(p.min <= p.opt <= p.max and min(p.min) > 0 for p in found.values())
        made |= {value.name for value in graph.outputs}
    assert made >= {RESIDUAL, FIRST, LAST}
    assert found[LAST].max[-1] == ir.load(folder / "head.onnx").graph.outputs[1].shape[-1]


def test_sizes_of_crossing_tensors_follow_from_the_inputs(tmp_path):
    inputs = [
        TensorProfile("x", "float16", (1, 8, 16), (1, 16, 16), (2, 32, 64), ("batch", "4*height", "2*width")),
        TensorProfile("t", "float16", (1,), (1,), (2,), ("batch",)),
    ]
    crossing(tmp_path / "tail.onnx", "batch", "(height + 1)*width//2 + 16", 64)
    _, found = piece_profiles(tmp_path / "tail.onnx", inputs)
    assert (found.min, found.opt, found.max) == ((1, 28, 64), (1, 36, 64), (2, 160, 64))
    crossing(tmp_path / "tail.onnx", "batch", "Min(8*height, 40) + Max(width, 16)", 64)
    _, found = piece_profiles(tmp_path / "tail.onnx", inputs)
    assert (found.min, found.opt, found.max) == ((1, 32, 64), (1, 48, 64), (2, 72, 64))
    for unknown in ("u0", "Mod(height, 3)"):  # Mod is not least where its arguments are
        crossing(tmp_path / "tail.onnx", "batch", unknown, 64)
        want = re.escape(f"'y': a size of {unknown}, want one of batch, height, width")
        with pytest.raises(UnsupportedError, match=want):
            piece_profiles(tmp_path / "tail.onnx", inputs)


def test_pieces_share_memory_for_activations():
    plans = [{"weights": 2, "activations": 30}, {"weights": 5, "activations": 70}, {"weights": 1, "activations": 10}]
    assert memory_together(plans) == {"weights": 8, "activations": 70}
    assert memory_together([*plans, {"activations": 80}]) == {"activations": 80}


def test_pieces_in_another_order_are_refused():
    files = [{"file": f"{piece}.onnx", "bytes": 1, "sha256": ""} for piece in PIECES]
    for wrong in (files[::-1], files[:2]):
        with pytest.raises(ArtifactError, match=r"onnx: pieces (end tail head|head tail), not head tail end"):
            manifests.complete(onnx={"file": "model.onnx", "bytes": 1, "pieces": wrong})


def crossing(path, *shape):
    """Save a graph that takes the model's t and a tensor of this shape."""
    t, y = (
        ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT16), shape=ir.Shape(dims))
        for name, dims in (("t", ["batch"]), ("y", shape))
    )
    node = ir.node("Identity", [y])
    node.outputs[0].name, node.outputs[0].type, node.outputs[0].shape = "z", y.type, y.shape
    ir.save(ir.Model(ir.Graph([t, y], node.outputs, nodes=[node], opset_imports={"": 23}), ir_version=10), path)


@pytest.mark.parametrize(
    ("name", "got"),
    [
        ("sdxl-tiny", "a UNet2DConditionModel, which has fewer than two transformer blocks in a row"),
        ("t5-tiny", "a T5Encoder, which has fewer than two"),
        ("z-image-tiny", "a ZImageTransformer2DModel, which has fewer than two"),
        ("flux1-controlnet-tiny", "an output depends on transformer_blocks.0 other than through the last block"),
    ],
)
def test_other_models_are_refused(name, got):
    with pytest.raises(UsageError, match=f"--step-cache: {name}: {got}"):
        find_cuts(get_model(name))


@pytest.mark.parametrize(
    ("name", "first", "last"),
    [
        ("AuraFlowTransformer2DModel", "joint_transformer_blocks.0", "norm_out"),
        ("CogView4Transformer2DModel", "transformer_blocks.0", "transformer_blocks.1"),
        ("OvisImageTransformer2DModel", "transformer_blocks.0", "single_transformer_blocks.0"),
        ("PRXTransformer2DModel", "blocks.0", "blocks.1"),
    ],
)
def test_folders_of_other_classes_are_cut_too(name, first, last, tmp_path):
    cuts = find_cuts(open_folder(save(name, tmp_path / "some-model"), {}))
    assert (cuts.before_first.module, cuts.behind_first.module, cuts.behind_last.module) == (first, first, last)


@pytest.mark.parametrize("name", ["flux1-dev", "sd3.5-medium", "z-image-turbo", "wan2.2-ti2v-5b", "flux2-dev"])
def test_full_models_are_cut_where_their_twins_are(name):
    spec = MODELS[name]
    full, twin = find_cuts(spec), find_cuts(spec_of(spec.twin))
    assert (full.before_first, full.behind_first) == (twin.before_first, twin.behind_first)
    last = dataclasses.replace(full.behind_last, module=full.behind_last.module.rstrip("0123456789"))
    assert last == dataclasses.replace(twin.behind_last, module=twin.behind_last.module.rstrip("0123456789"))
