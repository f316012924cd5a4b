"""Describing a class of diffusers by the calls of its own pipeline, and by runs of the class on meta.

The inputs are what the pipeline gives its denoiser (probe.py); an axis is dynamic if its size changes with that of the
images or the text.
"""

from __future__ import annotations

import functools
import inspect
import itertools
import math
import traceback
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from svdq_trt.base.errors import UnsupportedError, first_line
from svdq_trt.models import call as calls
from svdq_trt.models.described import ACT, TIMESTEPS, Description, default_values
from svdq_trt.models.probe import (
    MASKS,
    PipelineParts,
    Texts,
    frames_parameter,
    is_pooled,
    own_class,
    record,
    text_parameters,
)
from svdq_trt.models.real import RealNumbers, no_autocast
from svdq_trt.models.spec import SYMBOLS, Axis, TensorIO

Dims = tuple[int | Axis, ...]

_DTYPES = {torch.float32: "float32", torch.int64: "int64", torch.bool: "bool"}
#: the sizes of the first call, and of each call in which one of them differs; no two follow from each other
_FIRST = {"batch": 3, "height": 256, "width": 384, "tokens": 24, "tokens2": 40, "frames": 9, "images": 1}
_OTHER = {"batch": 5, "height": 512, "width": 640, "tokens": 56, "tokens2": 88, "frames": 17, "images": 1}
_STEPS = (8, 16, 32, 64, 128)
_TEXT, _PIXELS = 256, 1024  # where the pipeline does not say


def describe(
    name: str, class_name: str, config: Mapping[str, Any], parts: PipelineParts, fixed: Mapping[str, int]
) -> Description:
    """Describe a model by calls of its pipeline and runs of its class on meta.

    Args:
        name: what it is to be called. class_name, config, parts: see Description.
        fixed: sizes that never change; the model is described for these.

    Raises:
        UnsupportedError: says what of the class or its pipeline is not understood.
    """
    cls = own_class(class_name, "class")
    module, whole = skeleton(cls, config), default_values(cls, config)
    probe = _Probe(cls, module, whole, parts, _texts(cls, module, whole, parts))
    first = probe.run(_FIRST)
    others = {symbol: probe.run(_FIRST | {symbol: _OTHER[symbol]}) for symbol in probe.symbols}
    _require_tensors(cls.__name__, first, {symbol: seen for symbol, seen in others.items() if symbol not in fixed})
    dims = {
        name: tuple(
            _axis(f"{cls.__name__}: {name}", size, {s: seen.shapes[name][i] for s, seen in others.items()})
            for i, size in enumerate(shape)
        )
        for name, shape in first.shapes.items()
    }
    step, multiples = _pixel_step(probe, dims)
    ios = {name: TensorIO(name, first.dtypes[name], _with_multiples(axes, multiples)) for name, axes in dims.items()}
    return Description(
        name=name,
        class_name=class_name,
        config={key: value for key, value in config.items() if not key.startswith("_")},
        parts=parts,
        texts=probe.texts,
        forms=probe.run({**_FIRST, **fixed}).forms,
        inputs=tuple(_wide(io) for name, io in ios.items() if name != _OUTPUT),
        output=ios[_OUTPUT],
        pixel_multiple=step,
        parameters=sum(p.numel() for p in module.parameters()),
        fixed=dict(fixed),
        **_own_sizes(parts),
    )


def _require_tensors(where: str, first: _Seen, others: Mapping[str, _Seen]) -> None:
    """Raise UnsupportedError for an argument whose numbers or lists, rather than tensors, follow a size."""
    for symbol, seen in others.items():
        for name, form in first.forms.items():
            if seen.forms.get(name) != form or (symbol == "batch" and "images" in form):
                got = f"follows {symbol} as a list or a number"
                raise UnsupportedError(f"{where}: {name}", got, "a tensor", f"Fix it by --{symbol} N.")


def _wide(io: TensorIO) -> TensorIO:
    """The input in f32 where its own dtype may hold too little.

    In 16 bits those are timesteps, and positions, which all images share. Timesteps that are whole numbers are not with
    every scheduler.
    """
    narrow = io.dtype == "act" and io.has_batch and len(io.dims) > 1
    return replace(io, dtype="float32") if io.name in TIMESTEPS or (io.dtype == "act" and not narrow) else io


def skeleton(cls: type[nn.Module], config: Mapping[str, Any]) -> nn.Module:
    """The class's module on meta, with everything in it, in the act dtype."""
    with torch.device("meta"):
        module = cls(**{key: value for key, value in config.items() if not key.startswith("_")})
    nn.Module.to(module, ACT)
    return module.eval().requires_grad_(False)


_OUTPUT = "out_sample"


@dataclass(frozen=True)
class _Seen:
    """One call: the forms of its arguments, and shape and dtype of every input and of the output."""

    forms: dict[str, calls.Form]
    shapes: dict[str, tuple[int, ...]]
    dtypes: dict[str, str]


@dataclass
class _Probe:
    """The pipeline and the module that are run."""

    cls: type[nn.Module]
    module: nn.Module
    config: Any
    parts: PipelineParts
    texts: Texts

    @property
    def symbols(self) -> tuple[str, ...]:
        """The sizes that the pipeline can be asked for."""
        texts = sum(not is_pooled(name) for name in self.texts.widths)
        asked = {"tokens2": texts > 1, "frames": frames_parameter(self.parts.pipeline) is not None}
        return tuple(symbol for symbol in SYMBOLS if asked.get(symbol, True))

    def run(self, sizes: Mapping[str, int]) -> _Seen:
        """Make one call of the denoiser, and run it on meta."""
        call = record(self.cls, self.config, self.parts, self.texts, sizes, dtype=ACT)
        forms = {name: calls.form_of(name, value, sizes["batch"]) for name, value in call.items()}
        inputs: dict[str, Tensor] = {}
        for name, form in forms.items():
            inputs |= calls.take(form, call[name]) or {}
        output = run_on_meta(self.module, call)
        tensors = inputs | {_OUTPUT: output}
        return _Seen(
            forms,
            {name: tuple(t.shape) for name, t in tensors.items()},
            {name: _DTYPES.get(_narrow(t.dtype), "act") for name, t in tensors.items()},
        )


def run_on_meta(module: nn.Module, call: Mapping[str, Any]) -> Tensor:
    """The first output of a call, on meta. Raises UnsupportedError: the model needs values to run."""
    given = pytree.tree_map(lambda v: v.to("meta") if isinstance(v, Tensor) else v, dict(call))
    try:
        with torch.no_grad(), torch.device("meta"), RealNumbers(), no_autocast():
            out: Tensor = module(**given, return_dict=False)[0]
    except UnsupportedError:
        raise
    except Exception as error:  # whatever the class's code stumbles over
        reason = first_line(error, 120)
        got = f"cannot run without values{_place(error)}: {reason}"
        raise UnsupportedError(type(module).__name__, got, "a model that runs on shapes alone") from error
    return out


def _place(error: BaseException) -> str:
    """The line of diffusers' code that an error comes from, for people."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if "diffusers/models" in f.filename]
    return f", as in {frames[-1].filename.rpartition('/')[2]}, '{frames[-1].line}'" if frames else ""


def _narrow(dtype: torch.dtype) -> torch.dtype:
    return {torch.float64: torch.float32, torch.int32: torch.int64}.get(dtype, dtype)


def _own_sizes(parts: PipelineParts) -> dict[str, int]:
    """The sizes that the pipeline has where none are given."""
    known = inspect.signature(own_class(parts.pipeline, "pipeline").__call__).parameters

    def default(asked: inspect.Parameter | None, other: int) -> int:
        return asked.default if asked and isinstance(asked.default, int) else other

    tokens = default(known.get("max_sequence_length"), _TEXT)
    sizes = {"pixels": default(known.get("height"), _PIXELS), "tokens": tokens, "tokens2": tokens}
    return sizes | {"frames": default(frames_parameter(parts.pipeline), 1)}


# ---- widths of prompt embeddings -----------------------------------------------------------------------------------


class _WidthError(Exception):
    """A layer that takes another width than the marker it was given: (marker, width)."""


def _texts(cls: type[nn.Module], module: nn.Module, config: Any, parts: PipelineParts) -> Texts:
    """The width of each prompt embedding, and the dtype of masks, with which pipeline and model run.

    Each embedding first has a width that no layer has, and the layer that this reaches says its own. A pipeline that
    does not let it through gets each number of the configuration.
    """
    names = text_parameters(parts.pipeline)
    taken = {size for p in module.parameters() for size in p.shape}
    markers = dict(zip(names, (n for n in itertools.count(1009, 2) if n not in taken), strict=False))
    tries = [(markers, mask) for mask in MASKS]
    if len(names) == 1:
        numbers = {value for value in config.values() if isinstance(value, int) and value > 1}
        tries += [({names[0]: width}, mask) for width in sorted(numbers) for mask in MASKS]
    errors = []
    for widths, mask in tries:
        try:
            return _learned(cls, module, config, parts, Texts(widths, mask))
        except UnsupportedError as error:
            errors.append(error)
    raise errors[0]


def _learned(cls: type[nn.Module], module: nn.Module, config: Any, parts: PipelineParts, texts: Texts) -> Texts:
    """`texts` with the widths that layers ask for."""
    widths = dict(texts.widths)
    hook = functools.partial(_compare, set(widths.values()))
    hooks = [part.register_forward_pre_hook(hook) for part in module.modules() if hasattr(part, "weight")]
    try:
        for _ in range(len(widths) + 1):
            found = Texts(widths, texts.mask)
            try:
                run_on_meta(module, record(cls, config, parts, found, _FIRST, dtype=ACT))
                return found
            except UnsupportedError as error:
                if not isinstance(error.__cause__, _WidthError):
                    raise
                marker, width = error.__cause__.args
                widths = {name: width if own == marker else own for name, own in widths.items()}
    finally:
        for each in hooks:
            each.remove()
    raise UnsupportedError(cls.__name__, "no width of text that it takes", "a linear or a norm that reads the text")


def _compare(markers: set[int], part: nn.Module, args: tuple[Any, ...]) -> None:
    weight: Any = part.weight
    if weight is None or not args or not isinstance(args[0], Tensor) or not args[0].ndim:
        return
    if args[0].shape[-1] in markers and weight.shape[-1] != args[0].shape[-1]:
        raise _WidthError(args[0].shape[-1], weight.shape[-1])


# ---- axes ------------------------------------------------------------------------------------------------------------


def _axis(where: str, size: int, others: Mapping[str, int]) -> int | Axis:
    """The axis that has `size` in the first call, and other sizes where one symbol differs: {symbol: size}."""
    moved = [symbol for symbol, other in others.items() if other != size]
    if not moved:
        return size
    for axis in _candidates(size, moved):
        if axis.size(_FIRST) == size and all(axis.size(_FIRST | {s: _OTHER[s]}) == n for s, n in others.items()):
            return axis
    raise UnsupportedError(where, f"a size that follows {', '.join(moved)} in a way of its own", "a product or a sum")


def _candidates(size: int, moved: Sequence[str]) -> list[Axis]:
    """Axes that depend on these symbols and may have the size in the first call."""
    texts = [symbol for symbol in moved if symbol.startswith("tokens")]
    rest = [symbol for symbol in moved if symbol not in texts] or texts
    plus = texts[0] if rest != texts and texts else ""
    size -= _FIRST[plus] if plus else 0
    if len(rest) > 2 or len(texts) > 1 or size < 1:
        return []
    whole = math.prod(_FIRST[symbol] for symbol in rest)
    found = [Axis(rest[0], whole // size, by=tuple(rest[1:]), plus=plus)]
    if rest == ["frames"]:
        found += [Axis("frames", divisor, first=1, plus=plus) for divisor in (2, 4, 8)]
    return found


def _pixel_step(probe: _Probe, dims: Mapping[str, Dims]) -> tuple[int, dict[tuple[str, int], int]]:
    """The least step of height and width at which all sizes follow their axes; and sizes' multiples, by axis.

    The pipeline rounds other sizes, or the model's result is smaller than what it was given.
    """
    for step in _STEPS:
        sizes = _FIRST | {side: _FIRST[side] + step for side in ("height", "width")}
        try:
            shapes = probe.run(sizes).shapes
        except UnsupportedError:
            continue
        if shapes == {n: tuple(d if isinstance(d, int) else d.size(sizes) for d in axes) for n, axes in dims.items()}:
            pixels = {(a.symbol, a.divisor) for axes in dims.values() for a in axes if isinstance(a, Axis)}
            return step, {(s, d): step // d for s, d in pixels if s in ("height", "width") and step % d == 0}
    raise UnsupportedError(probe.cls.__name__, "no step of height and width that it takes", f"one up to {_STEPS[-1]}")


def _with_multiples(axes: Dims, multiples: Mapping[tuple[str, int], int]) -> Dims:
    return tuple(
        replace(a, multiple=multiples.get((a.symbol, a.divisor), 1)) if isinstance(a, Axis) and not a.by else a
        for a in axes
    )
