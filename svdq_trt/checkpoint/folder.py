"""``--model FOLDER``: a diffusers folder, of a whole pipeline or of a denoiser, as a model."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from svdq_trt.base.errors import ArtifactError, SvdqError, UnsupportedError
from svdq_trt.base.files import read_json_object
from svdq_trt.checkpoint.config_check import check_config
from svdq_trt.checkpoint.declared import refuse_quantized
from svdq_trt.models import MODELS, ModelSpec
from svdq_trt.models.describe import describe
from svdq_trt.models.described import default_values, spec_of
from svdq_trt.models.pipelines import INDEX
from svdq_trt.models.probe import CallError, PipelineParts, own_class, pipeline_of, scheduler_of

_COMPONENTS = ("transformer", "unet")


def open_folder(folder: Path, fixed: Mapping[str, int]) -> ModelSpec:
    """The model of a folder: the named one that has its class and configuration, else one that is described now.

    Args:
        fixed: sizes that the engine is to have once and for all.

    Raises:
        ArtifactError: no diffusers folder, or one that is damaged.
        UnsupportedError: code that is not diffusers' own, a quantized checkpoint, or what of the class is not
            understood.
    """
    parts, config_path = _parts(folder)
    config = read_json_object(config_path, "a diffusers config")
    refuse_quantized(config, config_path)
    cls = _class(config, config_path)
    for spec in MODELS.values():
        if spec.library == "diffusers" and spec.model_class() is cls and _is(spec, config_path):
            return spec
    name, alone = re.sub(r"[^\w.-]+", "-", folder.resolve().name), parts is None
    parts = parts or _pipeline_of(cls)
    try:
        found = describe(name, cls.__name__, config, parts, fixed)
    except CallError as error:
        if not alone:
            raise
        want = "the folder of a whole pipeline, which has its scheduler and autoencoder"
        raise CallError(error.where, error.got, want) from error
    spec = spec_of(found.to_text())
    spec.recipe(spec.build(tables=False))  # before any work: it says what cannot be traced
    return spec


def _is(spec: ModelSpec, config: Path) -> bool:
    try:
        check_config(spec, config)
    except SvdqError:
        return False
    return True


def _parts(folder: Path) -> tuple[PipelineParts | None, Path]:
    """The pipeline of a folder, None for a denoiser's own, and the denoiser's config.json."""
    if not (folder / INDEX).is_file():
        if not (folder / "config.json").is_file():
            raise ArtifactError(str(folder), f"neither {INDEX} nor config.json", "a diffusers folder")
        return None, folder / "config.json"
    index = read_json_object(folder / INDEX, "the index of a diffusers pipeline")
    pipeline = own_class(index.get("_class_name"), f"{folder / INDEX}: _class_name").__name__
    components = [name for name in _COMPONENTS if isinstance(index.get(name), list) and index[name][0]]
    if len(components) != 1:
        got = f"{' and '.join(components) or 'no denoiser'}"
        raise UnsupportedError(str(folder / INDEX), got, f"one of {', '.join(_COMPONENTS)}")
    settings = {k: v for k, v in index.items() if not k.startswith("_") and not isinstance(v, list) and v is not None}
    found: dict[str, tuple[str, dict[str, Any]]] = {"scheduler": (scheduler_of(pipeline), {})}
    for name, path in (("scheduler", "scheduler_config.json"), ("vae", "config.json")):
        if (folder / name / path).is_file():
            found[name] = _config(folder / name / path)
    return PipelineParts(pipeline, components[0], settings, found), folder / components[0] / "config.json"


def _config(path: Path) -> tuple[str, dict[str, Any]]:
    """Class and configuration of a component, without infinite numbers that are the class's defaults."""
    config = read_json_object(path, "a component's configuration", infinite=True)
    cls = own_class(config.get("_class_name"), f"{path}: _class_name")
    infinite = {k: v for k, v in default_values(cls, {}).items() if isinstance(v, float) and math.isinf(v)}
    plain = {k: v for k, v in config.items() if not k.startswith("_") and not (k in infinite and v == infinite[k])}
    return cls.__name__, plain


def _class(config: Mapping[str, Any], path: Path) -> type[nn.Module]:
    cls: type[nn.Module] = own_class(config.get("_class_name"), f"{path}: _class_name")
    if not issubclass(cls, nn.Module):
        raise ArtifactError(f"{path}: _class_name", cls.__name__, "a denoiser's class")
    return cls


def _pipeline_of(cls: type[nn.Module]) -> PipelineParts:
    pipeline, component = pipeline_of(cls)
    return PipelineParts(pipeline, component, {}, {"scheduler": (scheduler_of(pipeline), {})})
