"""Plans of a graph that is cut for a step cache: TensorRT builds each, and their weights are those of the whole."""

from __future__ import annotations

import pytest

from svdq_trt.build.stages.plan import PIECE_FILES, Plan
from svdq_trt.engine import plugin_lib
from svdq_trt.engine.backend import select
from tests.harness.in_pieces import spec_of, write_folder

PIECES = ("head.onnx", "tail.onnx", "end.onnx")
#: up to sizes at which activations outweigh the 8 MiB that TensorRT sets aside for the matrix products of each stream:
#: a piece may have more streams than the whole
RANGES = {"batch": (1, 1, 2), "height": (64, 64, 384), "width": (64, 64, 384), "frames": (1, 1, 17)}
NAMES = (
    "flux1-tiny",
    "flux2-tiny",
    "chroma-tiny",
    "krea2-tiny",
    "pixart-tiny",
    "sana-tiny",
    "sd3-tiny",
    "qwen-image-tiny",
    "z-image-tiny",
    "wan-tiny",
)


@pytest.mark.parametrize("name", NAMES)
def test_weights_are_in_one_plan_each(name, tmp_path):
    profiles = write_folder(tmp_path, spec_of(name), RANGES)
    stage = Plan.of(tmp_path, "", 89, select("auto", 89), profiles, None, False)
    whole, library = stage.run(lambda *_: None), plugin_lib.find()
    cut = Plan.of(tmp_path, "", 89, select("auto", 89), profiles, library, False, PIECES).run(lambda *_: None)
    assert [piece.file for piece in cut.plan.pieces] == [*PIECE_FILES]
    assert [piece.bytes for piece in cut.plan.pieces] == [(tmp_path / name).stat().st_size for name in PIECE_FILES]
    code = library.path.read_bytes()
    assert not any(code in (tmp_path / name).read_bytes() for name in PIECE_FILES)
    assert cut.memory["activations"] < 1.25 * whole.memory["activations"]
    assert whole.memory["weights"] <= cut.memory["weights"] < 1.02 * whole.memory["weights"]
