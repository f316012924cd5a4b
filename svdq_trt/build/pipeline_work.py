"""Resolving ``--pipeline``: the parts beside the denoiser, their sizes and weights, and the files that are copied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from svdq_trt.artifact.manifest import TensorProfile
from svdq_trt.base.errors import ArtifactError, UnsupportedError, UsageError
from svdq_trt.build.config import BuildConfig, Range
from svdq_trt.build.rehearsal import check_fit
from svdq_trt.build.sizes import Sizes
from svdq_trt.calibrate.sample import check_denoiser
from svdq_trt.checkpoint import Identity
from svdq_trt.checkpoint.config_check import check_config
from svdq_trt.checkpoint.parts import check_part, identify_part, locate_part
from svdq_trt.models import MODELS, ModelSpec, get_model
from svdq_trt.models.language_model import LanguageModel, is_language_model
from svdq_trt.models.parts import Part
from svdq_trt.models.pipelines import PipelineFolder


@dataclass(frozen=True)
class PartWork:
    """A part with its options resolved. Attributes: weight_bytes: of its module."""

    part: Part
    identity: Identity
    sizes: Sizes
    weight_bytes: int

    def inputs(self) -> tuple[TensorProfile, ...]:
        """The profile of every input."""
        return self.sizes.tensors(self.part.inputs, self.part.torch_dtype)

    def outputs(self) -> tuple[TensorProfile, ...]:
        """Shape ranges of every output."""
        return self.sizes.tensors(self.part.outputs, self.part.torch_dtype)


@dataclass(frozen=True)
class PipelineWork:
    """A pipeline with its options resolved.

    Attributes:
        parts: in 16 bit. quantized: component -> the build of its engine in 4 bits, as a model of its own.
    """

    folder: PipelineFolder
    variant: str
    random_weights: int | None
    parts: tuple[PartWork, ...]
    quantized: Mapping[str, BuildConfig]
    files: tuple[str, ...]


def plan_pipeline(config: BuildConfig, spec: ModelSpec, sizes: Sizes) -> PipelineWork | None:
    """Resolve ``--pipeline``: everything in its folder is found and checked; None without it.

    Raises:
        SvdqError: another model's pipeline, a component that is missing, does not fit, or that no engine runs.
    """
    if config.pipeline is None:
        return None
    folder = PipelineFolder.read(config.pipeline)
    check_denoiser(spec, config.pipeline)
    all_parts = folder.parts(spec.act_dtype, sizes.profile["tokens"][2])
    planned, parts, quantized = [], [], {}
    for part in all_parts:
        if config.quantize_text and (part.class_name == "T5EncoderModel" or is_language_model(part)):
            quantized[part.component] = _encoder_build(config, spec, part)
            continue
        part_sizes = _part_sizes(part, sizes, config.vae_tile)
        count = check_part(part, config.pipeline / part.component / "config.json", part_sizes.least())
        planned.append((part, part_sizes, count))
    names = [part.name for part in all_parts]
    if unknown := [name for name in config.streamed_parts if name not in names]:
        raise UsageError("--weight-streaming", f"no part '{unknown[0][:80]}'", f"one of {', '.join(names)}")
    if config.quantize_text and not quantized:
        raise UsageError("--quantize-text", f"{config.pipeline} has no T5 and no language model", "a pipeline with one")
    check_fit(folder, spec, all_parts, sizes)
    for part, part_sizes, count in planned:  # last, as gigabytes are read
        source = None if config.random_weights is not None else locate_part(part, config.pipeline, spec.variant)
        identity = identify_part(part, source, config.random_weights)
        parts.append(PartWork(part, identity, part_sizes, count))
    files = tuple(folder.copied_files())
    return PipelineWork(folder, spec.variant, config.random_weights, tuple(parts), quantized, files)


def _encoder_build(config: BuildConfig, spec: ModelSpec, part: Part) -> BuildConfig:
    """The build of a text encoder in 4 bits, with the denoiser's options as far as they are not about its weights."""
    assert config.pipeline is not None
    root = config.pipeline / part.component
    return BuildConfig(
        _language_model(spec, part, root) if is_language_model(part) else _model_of(root / "config.json"),
        config.archs,
        config.out,
        checkpoint=str(root) if config.random_weights is None else None,
        random_weights=config.random_weights,
        format=config.format,
        rank=config.rank if config.rank_auto is None else BuildConfig.rank,  # a budget is that of the denoiser
        batch=Range(1, 1, 1),
        tokens=Range(part.tokens, part.tokens, part.tokens),
        preset=config.preset,
        device=config.device,
        backend=config.backend,
        fuse_mlp=config.fuse_mlp,
        weight_streaming=config.of_part(part.name).weight_streaming,
        check=config.check,
        force=config.force,
    )


def _language_model(spec: ModelSpec, part: Part, root: Path) -> str:
    """The description of a language model, with the denoiser's name before its own.

    Raises:
        ArtifactError: a config that its class does not take. UnsupportedError: a quantized one, or too narrow layers.
    """
    config = root / "config.json"
    check_part(part, config, {"batch": 1})
    found = LanguageModel(f"{spec.name}-{part.component}", part, spec.variant).to_text()
    model = get_model(found)
    recipe = model.recipe(model.build(tables=False))  # before any work: it says what cannot be traced
    if not recipe.groups:
        got = f"no linear for 4 bits: of {recipe.kept[0].name}, {recipe.kept[0].reason}"
        raise UnsupportedError(f"--quantize-text: {config}", got, "wider layers, or no --quantize-text")
    return found


def _model_of(config: Path) -> str:
    """The name of the T5 that a text encoder's config describes. Raises UnsupportedError: none."""
    names = [spec.name for spec in MODELS.values() if spec.library == "transformers"]
    for name in names:
        try:
            check_config(MODELS[name], config)
            return name
        except ArtifactError:
            continue
    raise UnsupportedError(f"--quantize-text: {config}", "an encoder of another size", f"one of {', '.join(names)}")


def _part_sizes(part: Part, sizes: Sizes, tile: int) -> Sizes:
    """A part's sizes: the denoiser's, of one row.

    Texts and images go through their engines one by one. So a text's values are the same bits in every batch and every
    runtime, as sizes that are fixed have one set of kernels. An image goes by tiles of `tile` pixels where it is
    larger: one of 1024 pixels fills a GPU, and an engine's memory is that of its largest input.
    """
    sides = {name: sizes.profile[name] for name in ("height", "width")} if part.role else {}
    tiles = {name: (min(low, tile), min(opt, tile), min(high, tile)) for name, (low, opt, high) in sides.items()}
    return Sizes(sizes.profile | tiles | {"batch": (1, 1, 1)})
