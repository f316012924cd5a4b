"""Engines of a folder as a diffusers pipeline; imports torch, diffusers and transformers for it."""

from __future__ import annotations

from typing import Any

from svdq_trt.artifact import pipeline_file
from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.side_by_side import SideBySide
from svdq_trt.models import get_model
from svdq_trt.models.assembly import assemble
from svdq_trt.models.pipelines import INDEX, PipelineFolder
from svdq_trt.runtime.engines import Engines
from svdq_trt.runtime.protocol import Runner


def engine_pipeline(engines: Engines, opening: SideBySide[Runner]) -> Any:
    """The pipeline.

    Args:
        opening: the engines for every picture. Another is opened at its first use.

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
    source.check()

    def runner(name: str) -> Runner:
        return opening.results()[name] if name in engines.for_every_picture else engines.open(name)

    return assemble(source, get_model(engines.manifests[kind.denoiser].source), runner)
