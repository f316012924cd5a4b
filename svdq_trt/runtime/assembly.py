"""Engines of a folder as the models of a diffusers pipeline; imports torch, diffusers and transformers for it."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from typing import Any

from svdq_trt.artifact import pipeline_file
from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.side_by_side import SideBySide
from svdq_trt.models import get_model
from svdq_trt.models.denoiser import Denoiser
from svdq_trt.models.part_modules import AUTOENCODERS, TextEncoder
from svdq_trt.models.parts import full_config, graph_name, is_autoencoder
from svdq_trt.models.pipelines import INDEX, PipelineFolder
from svdq_trt.runtime.engines import Engines
from svdq_trt.runtime.protocol import Runner


def assemble(engines: Engines, denoiser: SideBySide[Runner]) -> Any:
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
        files = {name: source.load(name) for name in source.copied}
        runners = denoiser.results() | opening.results()
        models = {name: _model(name, engines, source, runners) for name in (kind.denoiser, *source.modules)}
        return source.diffusers_class()(**source.without_components() | files | models)


def _model(name: str, engines: Engines, source: PipelineFolder, runners: Mapping[str, Runner]) -> Any:
    """The component `name`, which runs one of the engines that are open."""
    denoiser = source.kind.denoiser
    spec = get_model(engines.manifests[denoiser].source)
    if name == denoiser:
        return Denoiser(runners[name], spec, name).eval()
    class_name = source.classes[name]
    config = full_config(class_name, source.config(name))
    if is_autoencoder(class_name):
        encoder = functools.partial(engines.open, graph_name(name, "encoder"))
        return AUTOENCODERS[class_name](runners[graph_name(name, "decoder")], name, config, encoder)
    return TextEncoder(runners[name], name, class_name, config, spec.torch_dtype)
