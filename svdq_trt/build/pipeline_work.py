"""Resolving ``--pipeline``: the parts beside the denoiser, their sizes and weights, and the files that are copied."""

from __future__ import annotations

from dataclasses import dataclass

from svdq_trt.artifact.manifest import TensorProfile
from svdq_trt.build.config import BuildConfig
from svdq_trt.build.sizes import Sizes
from svdq_trt.calibrate.sample import check_denoiser
from svdq_trt.checkpoint import Identity
from svdq_trt.checkpoint.parts import check_part, identify_part, locate_part
from svdq_trt.models import ModelSpec
from svdq_trt.models.parts import Part
from svdq_trt.models.pipelines import PipelineFolder


@dataclass(frozen=True)
class PartWork:
    """A part with its options resolved."""

    part: Part
    identity: Identity
    sizes: Sizes

    def inputs(self) -> tuple[TensorProfile, ...]:
        """The profile of every input."""
        return self.sizes.tensors(self.part.inputs, self.part.torch_dtype)

    def outputs(self) -> tuple[TensorProfile, ...]:
        """Shape ranges of every output."""
        return self.sizes.tensors(self.part.outputs, self.part.torch_dtype)


@dataclass(frozen=True)
class PipelineWork:
    """A pipeline with its options resolved."""

    folder: PipelineFolder
    variant: str
    random_weights: int | None
    parts: tuple[PartWork, ...]
    files: tuple[str, ...]


def plan_pipeline(config: BuildConfig, spec: ModelSpec, sizes: Sizes) -> PipelineWork | None:
    """Resolve ``--pipeline``: everything in its folder is found and checked; None without it.

    Raises:
        SvdqError: another model's pipeline, a component that is missing, or one that no engine runs.
    """
    if config.pipeline is None:
        return None
    folder = PipelineFolder.read(config.pipeline)
    check_denoiser(spec, config.pipeline)
    parts = []
    for part in folder.parts(spec.act_dtype, sizes.profile["tokens"][2]):
        check_part(part, config.pipeline / part.component / "config.json")
        source = None if config.random_weights is not None else locate_part(part, config.pipeline, spec.variant)
        identity = identify_part(part, source, config.random_weights)
        parts.append(PartWork(part, identity, _part_sizes(part, sizes)))
    return PipelineWork(folder, spec.variant, config.random_weights, tuple(parts), tuple(folder.copied_files()))


def _part_sizes(part: Part, sizes: Sizes) -> Sizes:
    """A part's sizes: the denoiser's, from one row on, as guidance gives the denoiser two to an image.

    Images go through an autoencoder one by one: one of 1024 pixels fills a GPU, and an engine's memory is that of its
    largest batch.
    """
    most = 1 if part.role else sizes.profile["batch"][2]
    return Sizes(sizes.profile | {"batch": (1, 1, most)})
