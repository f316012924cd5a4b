"""Comparing a checkpoint's config.json with the model's own config, by what diffusers' class makes of both."""

from __future__ import annotations

import contextlib
import functools
import inspect
import types
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.modules.module import register_module_module_registration_hook

from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.files import read_json_object
from svdq_trt.checkpoint.declared import refuse_quantized
from svdq_trt.models import ModelSpec

#: attributes without effect on a module in eval mode
_OF_TRAINING = {"dropout", "gradient_checkpointing", "training"}
#: config keys that pipelines apply to the inputs
_OF_PIPELINES = {"timestep_scale"}
#: attributes of every module, and diffusers' copy of the config, of which the class reads some keys as it runs
_OF_ALL = {*vars(nn.Module()), "_internal_dict"}


def check_config(spec: ModelSpec, path: Path) -> None:
    """Raise ArtifactError naming the first key by which config.json describes another model than the model's config.

    A key that either side lacks counts with the class's default; keys the class doesn't know are ignored, but for a
    quantization, which is refused.
    """
    config = read_json_object(path, "a diffusers config")
    refuse_quantized(config, path)
    compare_config(spec, config, str(path))


def compare_config(spec: ModelSpec, found: Mapping[str, Any], where: str, class_names: Sequence[str] = ()) -> None:
    """Check a config that was read already, as check_config; `class_names` are accepted besides the model's own.

    Keys that are spelled alike mean the same. Others may: a default may follow from another key, a number stand for a
    list. So modules are built from both configs, without weights, and everything that a module computes with is
    compared: its class, its parameters' shapes, and the attributes and config keys that its code reads as it runs.
    """
    cls = spec.model_class()
    name = found.get("_class_name", cls.__name__)
    if name not in (cls.__name__, *spec.class_aliases, *class_names):
        raise ArtifactError(where, f"_class_name is {_short(name)}", f"{cls.__name__} for {spec.name}")
    defaults = {key: p.default for key, p in inspect.signature(cls.__init__).parameters.items() if key != "self"}
    want = {key: _plain(spec.config.get(key, default)) for key, default in defaults.items()}
    got = {key: _plain(found.get(key, default)) for key, default in defaults.items()}
    odd = [key for key in defaults if got[key] != want[key]]
    if not odd:
        return
    meant, count = _meaning(spec, want, None)
    if meant == _meaning_or_none(spec, got, count):
        return
    alone = (key for key in odd if meant != _meaning_or_none(spec, want | {key: got[key]}, count))
    key = next(alone, odd[0])
    raise ArtifactError(where, f"{key} is {_short(got[key])}", f"{_short(want[key])} for {spec.name}")


def check_module(spec: ModelSpec, module: nn.Module, where: str) -> None:
    """Check a diffusers module, as check_config: it must match the spec in everything but its weights."""
    config: Any = getattr(module, "config", {})  # several ControlNets have one each, and none together
    compare_config(spec, {"_class_name": type(module).__name__, **config}, where)


def _meaning_or_none(spec: ModelSpec, config: Mapping[str, Any], count: int) -> dict[str, Any] | None:
    """What _meaning says of a config from outside; None where it makes no module, or one of many more parts."""
    try:
        return _meaning(spec, config, 2 * count)[0]
    except Exception:  # whatever a constructor makes of values of any type: it is another model
        return None


def _meaning(spec: ModelSpec, config: Mapping[str, Any], most: int | None) -> tuple[dict[str, Any], int]:
    """What a module computes with, by the name of its parts, and their number, which is at most `most`."""
    with torch.device("meta"), _at_most(most):
        module: Any = spec.model_class()(**config)
        spec.family.prepare(module)
    parts = dict(module.named_modules())
    owners = {type(part) for part in parts.values()}
    owners |= {type(value) for part in parts.values() for value in vars(part).values() if callable(value)}
    read = _names_read(frozenset(owners))
    meant: dict[str, Any] = {name: _of_part(part, read) for name, part in parts.items()}
    own = _names_read(frozenset({type(module)})) | _OF_PIPELINES
    meant["config"] = {key: _value(getattr(module.config, key)) for key in config if key in own}
    return meant, len(parts)


def _of_part(part: nn.Module, read: frozenset[str]) -> tuple[Any, ...]:
    """Class, shapes of parameters, and attributes that some code reads. Dropout does nothing in eval mode."""
    if isinstance(part, nn.Dropout):
        return (nn.Dropout,)
    shapes = {name: tuple(p.shape) for name, p in part.named_parameters(recurse=False)}
    known = {n: _value(v) for n, v in vars(part).items() if n in read and n not in _OF_ALL | _OF_TRAINING}
    return type(part), shapes, known


@functools.cache
def _names_read(owners: frozenset[type]) -> frozenset[str]:
    """Names in the code that runs when these classes are called: what is mentioned from `forward` on."""
    methods: dict[str, list[types.CodeType]] = {}
    for base in {base for cls in owners for base in cls.__mro__} - {nn.Module, object}:
        for name, value in vars(base).items():
            value = value.fget if isinstance(value, property) else value
            function = inspect.unwrap(value) if callable(value) else None
            if inspect.isfunction(function):
                methods.setdefault(name, []).append(function.__code__)
    names: set[str] = set()
    codes = [code for name in ("forward", "__call__") for code in methods.pop(name, ())]
    while codes:
        code = codes.pop()
        names.update(code.co_names)
        codes += [const for const in code.co_consts if isinstance(const, types.CodeType)]
        codes += [called for name in code.co_names for called in methods.pop(name, ())]
    return frozenset(names)


def _value(value: Any) -> Any:
    """What can be compared of an attribute: plain values, names of functions and classes; None counts as False."""
    if isinstance(value, bool | int | float | str | torch.dtype):
        return value
    if isinstance(value, list | tuple):
        return tuple(_value(v) for v in value)
    if isinstance(value, dict):
        return {key: _value(v) for key, v in value.items()}
    if value is None:
        return False
    return getattr(value, "__qualname__", type(value).__qualname__)


@contextlib.contextmanager
def _at_most(count: int | None) -> Iterator[None]:
    """Context in which constructors end with ValueError after `count` parts: a config may ask for millions."""
    made = 0

    def counted(owner: Any, name: str, part: Any) -> None:
        nonlocal made
        made += 1
        if count is not None and made > count:
            raise ValueError(f"more than {count} parts")

    hook = register_module_module_registration_hook(counted)
    try:
        yield
    finally:
        hook.remove()


def _plain(value: Any) -> Any:
    """The value with lists as tuples: JSON has no tuples."""
    return tuple(_plain(v) for v in value) if isinstance(value, list | tuple) else value


def _short(value: Any) -> str:
    text = repr(list(value) if isinstance(value, tuple) else value)
    return text if len(text) <= 80 else text[:77] + "..."
