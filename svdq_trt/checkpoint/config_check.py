"""Comparing a checkpoint's config.json with the model's own config."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.files import read_json_object
from svdq_trt.checkpoint.declared import refuse_quantized
from svdq_trt.models import ModelSpec

#: Keys that change no weight and no arithmetic.
_FREE = {"sample_size"}


def check_config(spec: ModelSpec, path: Path) -> None:
    """Raise ArtifactError naming the first key in which config.json differs from the model's config.

    A key that either side lacks counts with the class's default; keys the class doesn't know are ignored, but for a
    quantization, which is refused.
    """
    config = read_json_object(path, "a diffusers config")
    refuse_quantized(config, path)
    compare_config(spec, config, str(path))


def compare_config(spec: ModelSpec, found: Mapping[str, Any], where: str, class_names: Sequence[str] = ()) -> None:
    """Check a config that was read already, as check_config; `class_names` are accepted besides the model's own."""
    cls = spec.model_class()
    name = found.get("_class_name", cls.__name__)
    if name not in (cls.__name__, *spec.class_aliases, *class_names):
        raise ArtifactError(where, f"_class_name is {_short(name)}", f"{cls.__name__} for {spec.name}")
    for key, parameter in inspect.signature(cls.__init__).parameters.items():
        if key == "self" or key in _FREE:
            continue
        want = spec.config.get(key, parameter.default)
        got = found.get(key, parameter.default)
        if _normal(got) != _normal(want):
            raise ArtifactError(where, f"{key} is {_short(got)}", f"{_short(want)} for {spec.name}")


def check_module(spec: ModelSpec, module: nn.Module, where: str) -> None:
    """Check a diffusers module, as check_config: it must match the spec in everything but its weights."""
    config: Any = module.config
    compare_config(spec, {"_class_name": type(module).__name__, **config}, where)


def _normal(value: Any) -> Any:
    """Normal form of a config value: to diffusers, lists equal tuples, [a, a] equals a, and false equals null."""
    if isinstance(value, list | tuple):
        items = tuple(_normal(v) for v in value)
        return items[0] if items and all(v == items[0] for v in items) else items
    return None if value is False else value


def _short(value: Any) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else text[:77] + "..."
