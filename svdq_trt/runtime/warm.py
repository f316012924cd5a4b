"""Compiling an engine folder's kernels before its first start, which TensorRT-RTX otherwise keeps waiting for them."""

from __future__ import annotations

import functools
import os
from pathlib import Path

from svdq_trt.artifact import manifest, pipeline_file
from svdq_trt.artifact.manifest import Manifest
from svdq_trt.base.errors import ArtifactError, UnsupportedError
from svdq_trt.base.side_by_side import SideBySide
from svdq_trt.runtime.activations import SharedActivations
from svdq_trt.runtime.choice import Opening
from svdq_trt.runtime.session import Session


def warm(folder: Path, how: Opening) -> dict[Path, float | None]:
    """Open every engine of a folder, a pipeline's side by side, and keep what TensorRT-RTX compiles beside the plans.

    All are open at once. Weights stay in host memory where the engine was built with --weight-streaming; the others
    must fit into GPU memory together.

    Args:
        folder: of an engine, or of a denoiser's with pipeline.json. how: device, and what is allowed.

    Returns:
        for each engine's folder the seconds of compilation; None where the kernels were there.

    Raises:
        UnsupportedError: an engine of full TensorRT, which compiles nothing when it is opened. ArtifactError: a folder
            that is not writable. Errors of Session.
    """
    folders = [folder, *(folder / part for part in pipeline_file.parts_in(folder) or ())]
    manifests = {one: manifest.read(one) for one in folders}
    for one, data in manifests.items():
        if data.backend is not None and data.backend.name != "tensorrt-rtx":
            got = f"a plan of {data.backend.name}"
            raise UnsupportedError(str(one), got, "one of tensorrt-rtx, which compiles when it is opened")
        if not os.access(one, os.W_OK):
            raise _not_kept(one)
    shared = SharedActivations()
    calls = {str(one): functools.partial(_warm, one, data, how, shared) for one, data in manifests.items()}
    with SideBySide(calls, discard=lambda seconds: None) as opening:
        return {Path(one): seconds for one, seconds in opening.results().items()}


def _warm(folder: Path, data: Manifest, how: Opening, shared: SharedActivations) -> float | None:
    """Open and close one engine."""
    budget = 0 if data.plan is not None and data.plan.weight_streaming else None
    memory = "auto" if data.lora_slots is None else "torch"  # which LoRA slots are in
    session = how.open(folder, True, activations=shared, weight_budget=budget, memory=memory)
    assert isinstance(session, Session)
    with session:
        if not session.kept:
            raise _not_kept(folder)
        return session.seconds["context"] if session.compiled else None


def _not_kept(folder: Path) -> ArtifactError:
    return ArtifactError(str(folder), "nothing can be written there", "a folder that keeps the compiled kernels")
