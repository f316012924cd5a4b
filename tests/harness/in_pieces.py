"""Small models in 16 bit as engine folders without plans, cut for a step cache."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from svdq_trt.artifact.manifest import TensorProfile
from svdq_trt.build.graph import export_model
from svdq_trt.build.sizes import Sizes
from svdq_trt.build.stages.export import piece_files
from svdq_trt.checkpoint import load
from svdq_trt.models import ModelSpec, get_model
from svdq_trt.models.first_block import find_cuts
from tests.harness.manifests import file_entry, write_manifest

#: of every size: min, opt, max
FIXED = {"batch": (1,) * 3, "height": (64,) * 3, "width": (64,) * 3, "frames": (1,) * 3}


def spec_of(name: str) -> ModelSpec:
    """A twin with at least two blocks in a row: Z-Image's has one."""
    spec = get_model(name)
    return replace(spec, config={**spec.config, "n_layers": 2}) if name == "z-image-tiny" else spec


def write_folder(folder: Path, spec: ModelSpec, sizes: Mapping[str, tuple[int, int, int]]) -> tuple[TensorProfile, ...]:
    """Write graphs and manifest; returns the inputs' profiles."""
    ranges = Sizes({symbol: getattr(spec.profile, symbol) for symbol in spec.profile.sizes(0)} | dict(sizes))
    module = load(spec, random_seed=0)
    export_model(module, spec, ranges.ranges(), folder / "model.onnx", _silent, cuts=find_cuts(spec))
    inputs = ranges.tensors(spec.inputs, spec.torch_dtype)
    graph, data = (file_entry(folder / name) for name in ("model.onnx", "model.onnx.data"))
    pieces = [file_entry(folder / name) for name in piece_files(True)]
    entry = graph | {"bytes": graph["bytes"] + data["bytes"], "data": data, "pieces": pieces}
    write_manifest(folder, model=spec.name, plugin={}, plan={}, onnx=entry, inputs=[_entry(p) for p in inputs])
    return inputs


def _silent(done: float, total: float, text: str = "") -> None:
    """Progress for nobody."""


def _entry(profile: TensorProfile) -> dict[str, Any]:
    shape = {"min": profile.min, "opt": profile.opt, "max": profile.max}
    return {"name": profile.name, "dtype": profile.dtype, "shape": shape, "axes": profile.axes}
