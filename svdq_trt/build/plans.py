"""The plan of an engine folder, or why it is still missing."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

from svdq_trt.artifact.manifest import TensorProfile
from svdq_trt.base.errors import IncompleteError
from svdq_trt.build.config import BuildConfig
from svdq_trt.build.execute import Costs, Execution
from svdq_trt.build.stages.plan import FILE, PIECE_FILES, Plan, Planned
from svdq_trt.engine.backend import select
from svdq_trt.engine.plugin_lib import PluginLibrary


def plan_engine(
    execution: Execution,
    config: BuildConfig,
    folder: Path,
    graph_id: str,
    arch: int,
    profiles: tuple[TensorProfile, ...],
    library: PluginLibrary | None,
    costs: Costs,
    pieces: tuple[str, ...] = (),
) -> tuple[Planned | None, IncompleteError | None]:
    """Build the plan of the model.onnx in `folder`, or of its pieces; arguments behind `config` as Plan.of's.

    Returns:
        the plan, or the error that says why nothing here can build it.
    """
    try:
        backend = select(config.backend, arch)
    except IncompleteError as error:
        _remove(folder, {FILE, *PIECE_FILES})  # from an earlier build: not of these weights
        return None, error
    plan = Plan.of(folder, graph_id, arch, backend, profiles, library, config.weight_streaming, pieces)
    _remove(folder, {FILE, *PIECE_FILES} - {*plan.files})
    return execution.run(plan, costs), None


def _remove(folder: Path, names: Collection[str]) -> None:
    for name in names:
        (folder / name).unlink(missing_ok=True)
