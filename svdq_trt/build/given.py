"""All that a build or a scan is given, opened and checked before any work: hours may lie between it and its use.

Contents that take long to read (weights, a pipeline's text encoders) are checked by header, name and shape.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from svdq_trt.artifact.prompts import check_pictures, read_prompts
from svdq_trt.artifact.sensitivity import Sensitivity
from svdq_trt.base.errors import UsageError
from svdq_trt.build.config import BuildConfig, Sampling
from svdq_trt.calibrate.inputs import InputFile
from svdq_trt.calibrate.sample import check_pipeline, schedule
from svdq_trt.checkpoint import open_weights
from svdq_trt.contract.archs import resolve_attention
from svdq_trt.models import ModelSpec
from svdq_trt.models.first_block import find_cuts
from svdq_trt.nn.attention import find_packed

_OTHER_ATTENTION = "Or use --attention auto."


def check_given(config: BuildConfig, spec: ModelSpec) -> None:
    """Check attention, weights, calibration, skipped layers, scan and step cache of a build against its model.

    Raises:
        SvdqError: the first that is missing, damaged, or of another model.
    """
    if config.attention == "plugin":  # first: weights may be fetched
        check_attention(spec, config.archs, config.skip)
    if config.quantized is None or config.checkpoint is not None:
        check_weights(spec, config.checkpoint, config.random_weights)
    check_skip(spec, config.skip)
    if config.step_cache:
        find_cuts(spec)
    if config.calibration is not None:
        check_calibration(spec, config.calibration)
    if config.sampling is not None:
        check_sampling(spec, config.sampling)
    if config.rank_auto is not None and config.rank_auto.sensitivity is not None:
        check_scan(spec, config.rank_auto.sensitivity, config.skip)


def check_weights(spec: ModelSpec, checkpoint: str | None, random_weights: int | None) -> None:
    """Open the weights: their configuration, and every tensor's name and shape."""
    if checkpoint is not None or random_weights is None or random_weights < 0:  # a seed is good without being tried
        open_weights(spec, checkpoint, random_weights)


def check_skip(spec: ModelSpec, skip: Sequence[str]) -> None:
    """Find the layers of every pattern."""
    if skip:
        spec.recipe(spec.build(), skip)


def check_attention(spec: ModelSpec, archs: Sequence[int], skip: Sequence[str]) -> None:
    """Find the attentions that can be the plugin's: there must be one, and kernels for the heads of all of them."""
    found = find_packed(spec, skip)
    if not found:
        raise no_attention(spec)
    for arch in archs:
        kernels = resolve_attention("plugin", arch)
        for name, size in found.items():
            if size not in kernels:
                raise UsageError(
                    "--attention",
                    f"plugin for sm_{arch}, but {name} of {spec.name} has heads of {size}",
                    f"heads of {', '.join(map(str, kernels))}",
                    _OTHER_ATTENTION,
                )


def no_attention(spec: ModelSpec) -> UsageError:
    """The error of ``--attention plugin`` for a model none of whose attentions is a node of the plugin."""
    return UsageError(
        "--attention",
        f"plugin, but none of the attentions of {spec.name} can be a node of the plugin",
        "one that an op SVDQAttention* computes, with q, k and v from quantized nodes",
        _OTHER_ATTENTION,
    )


def check_calibration(spec: ModelSpec, path: Path) -> None:
    """Read all calibration inputs once: names, shapes, dtypes and that they are finite."""
    next(iter(InputFile(spec, path)), None)


def check_sampling(spec: ModelSpec, sampling: Sampling) -> None:
    """Read the prompts, and of the pipeline what says which model it has."""
    prompts = read_prompts(sampling.prompts)
    schedule(sampling.samples, len(prompts), sampling.steps)
    check_pictures(sampling.prompts, prompts, spec.pictures)
    check_pipeline(spec, sampling.pipeline)


def check_scan(spec: ModelSpec, path: Path, skip: Sequence[str]) -> None:
    """Read the scan: it must be one of this model's nodes."""
    scan = Sensitivity.load(path)
    if scan.model != spec.weights:
        raise UsageError("--sensitivity", f"{path}, a scan of {scan.model}", f"one of {spec.weights}")
    nodes = {group.node for group in spec.groups(spec.build(), skip)}
    if missing := nodes - {effect.node for effect in scan.effects}:
        raise UsageError(
            "--sensitivity",
            f"{path}: no figures of {min(missing)} ({len(missing)} nodes missing)",
            "a scan of the same model with the same --skip",
        )
