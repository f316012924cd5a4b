"""A pipeline of diffusers with a stand-in for each of its models."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

from svdq_trt.models.denoiser import Denoiser
from svdq_trt.models.part_modules import AUTOENCODERS, TextEncoder
from svdq_trt.models.parts import full_config, graph_name, is_autoencoder
from svdq_trt.models.pipelines import PipelineFolder
from svdq_trt.models.spec import ModelSpec
from svdq_trt.models.stand_in import Runs, StandIn


def assemble(source: PipelineFolder, spec: ModelSpec, runner: Callable[[str], Runs]) -> Any:
    """A pipeline of diffusers' own class, with the scheduler and the tokenizers of a folder.

    Args:
        spec: of the denoiser.
        runner: what runs the denoiser, by its component's name, or a part's graph, by Part.name; it is asked for an
            autoencoder's encoder when an image is first encoded.

    Raises:
        ArtifactError: files that cannot be read, or a runner with other inputs than the denoiser's.
    """
    files = source.files  # before the first runner, which may still be opened
    models: dict[str, StandIn] = {source.kind.denoiser: Denoiser(runner(source.kind.denoiser), spec, spec.subfolder)}
    models |= {name: _part(source, name, spec, runner) for name in source.modules}
    components = {name: model.eval() for name, model in models.items()}
    return source.diffusers_class()(**source.without_components() | files | components)


def _part(source: PipelineFolder, name: str, spec: ModelSpec, runner: Callable[[str], Runs]) -> StandIn:
    """The stand-in for a component beside the denoiser."""
    class_name = source.classes[name]
    config = full_config(class_name, source.config(name))
    if is_autoencoder(class_name):
        encoder = functools.partial(runner, graph_name(name, "encoder"))
        return AUTOENCODERS[class_name](runner(graph_name(name, "decoder")), name, config, encoder)
    return TextEncoder(runner(name), name, class_name, config, spec.torch_dtype, source.kind.states)
