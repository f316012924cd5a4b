"""Engines of a folder as a diffusers pipeline; imports torch, diffusers and transformers for it."""

from __future__ import annotations

import functools
from typing import Any

from svdq_trt.artifact import pipeline_file
from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.side_by_side import SideBySide
from svdq_trt.models import get_model
from svdq_trt.models.assembly import assemble
from svdq_trt.models.parts import graph_name
from svdq_trt.models.pipelines import INDEX, PipelineFolder
from svdq_trt.runtime.engines import Engines
from svdq_trt.runtime.protocol import Runner


def engine_pipeline(engines: Engines, denoiser: SideBySide[Runner]) -> Any:
    """The pipeline. The engines beside the denoiser are opened while diffusers and transformers are imported.

    Args:
        denoiser: its engine, which is being opened.

    Raises:
        ArtifactError: other engines than those of the folder's pipeline. Errors of PipelineFolder.check and of opening.
    """
    source = PipelineFolder.read_index(engines.folder)
    kind = source.kind
    wanted = {kind.denoiser: ".", **{name: name for name in source.part_names()}}
    found = {name: entry.folder for name, entry in engines.file.engines.items()}
    if (kind.class_name, wanted) != (engines.file.pipeline, found):
        got = f"{engines.file.pipeline} of {', '.join(sorted(found))}"
        want = f"a {kind.class_name} of {', '.join(sorted(wanted))}, as {INDEX} says"
        raise ArtifactError(str(engines.folder / pipeline_file.NAME), got, want)
    later = {graph_name(name, "encoder") for name in source.modules}  # of an autoencoder: at its first use
    others = {name: functools.partial(engines.open, name) for name in found if name not in {kind.denoiser, *later}}
    with SideBySide(others, discard=lambda runner: runner.close()) as opening:
        source.check()

        def runner(name: str) -> Runner:
            if name in later:
                return engines.open(name)
            return (denoiser if name == kind.denoiser else opening).results()[name]

        return assemble(source, get_model(engines.manifests[kind.denoiser].source), runner)
