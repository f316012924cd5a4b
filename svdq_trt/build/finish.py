"""Building the missing plan of an engine folder: on the target, from model.onnx alone.

A folder with pipeline.json has the engines of a pipeline's other parts in it, whose plans are built as well.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import msgspec

from svdq_trt.artifact import manifest, pipeline_file
from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.files import remove_leftovers
from svdq_trt.build.folder import copy_plugin, only_writer
from svdq_trt.build.process import StageRunner
from svdq_trt.build.stage import File
from svdq_trt.build.stages.plan import Plan, with_plan
from svdq_trt.build.ui import Screen
from svdq_trt.contract.archs import parse_arch
from svdq_trt.engine import plugin_lib
from svdq_trt.engine.backend import select


def finish(folder: Path, backend_choice: str) -> Path:
    """Build <folder>/model.plan, or the plans of its pieces, and complete the manifest. Returns the first plan's path.

    Raises:
        ArtifactError: no manifest, a model.onnx that is missing or not the manifest's, or another process writes
            there. IncompleteError: still no backend for this arch here.
    """
    if not folder.is_dir():
        raise ArtifactError(str(folder), "no such folder", "an engine folder")
    with only_writer(folder):
        plan = _finish(folder, backend_choice)
        for part in pipeline_file.parts_in(folder) or ():
            _finish(folder / part, backend_choice)
        return plan


def _finish(folder: Path, backend_choice: str) -> Path:
    data = manifest.verify(folder, parts=("onnx",))
    arch = parse_arch(data.arch)
    backend, library = select(backend_choice, arch), None if data.plugin is None else plugin_lib.find()
    if library is not None:
        plugin_lib.require_arch(library, arch)
    profiles = tuple(tensor.profile for tensor in data.inputs)
    pieces = tuple(Path(piece.file).name for piece in data.onnx.pieces)
    stage = Plan.of(folder, "", arch, backend, profiles, library, data.options.weight_streaming, pieces)
    stage = replace(stage, onnx=File("", path=folder / Path(data.onnx.file).name))  # the file that was verified
    remove_leftovers(folder, stage.files)
    with Screen() as screen, screen.stage(stage.label) as progress:
        done = StageRunner().run(stage, folder / "finish.log", progress)
    assert done.value is not None
    if library is not None:
        copy_plugin(library.path, folder)
    data = msgspec.structs.replace(
        with_plan(data, done.value, library),
        timings_s=data.timings_s | {stage.name: round(done.seconds, 2)},
        peak_rss_bytes=data.peak_rss_bytes | {stage.name: done.peak_rss_bytes},
    )
    manifest.write(folder, data)
    return stage.out
