"""Models that no file of ours names, by a description: what a named model's file says, as JSON.

describe.py makes it; it travels in an engine's manifest.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from svdq_trt.base.errors import ArtifactError
from svdq_trt.models import call as calls
from svdq_trt.models.family import Family
from svdq_trt.models.probe import PipelineParts, Texts, own_class, record
from svdq_trt.models.real import RealNumbers, no_autocast
from svdq_trt.models.spec import ModelSpec, Profile, TensorIO
from svdq_trt.models.synthetic import Request

ACT = torch.bfloat16
#: names of the timesteps among the arguments of diffusers' classes
TIMESTEPS = ("timestep", "timesteps", "t")


@dataclass(frozen=True)
class Description:
    """All that is known of such a model; see ModelSpec for what has the same name there.

    Attributes:
        class_name: of diffusers. config: constructor arguments. parts: the pipeline that it was found with.
        texts: the prompt embeddings that the pipeline takes. forms: argument -> its form (call.py).
        pixels, tokens, tokens2, frames: the pipeline's own sizes. fixed: sizes that it was described for.
    """

    name: str
    class_name: str
    config: dict[str, Any]
    parts: PipelineParts
    texts: Texts
    forms: dict[str, calls.Form]
    inputs: tuple[TensorIO, ...]
    output: TensorIO
    pixel_multiple: int
    parameters: int
    pixels: int
    tokens: int
    tokens2: int
    frames: int
    fixed: dict[str, int]

    def to_text(self) -> str:
        """The description as JSON; equal descriptions give equal text."""
        return json.dumps(msgspec.to_builtins(self), sort_keys=True)


@functools.lru_cache(maxsize=8)
def spec_of(text: str) -> ModelSpec:
    """The model of a description as JSON.

    Raises:
        ArtifactError: it is none. UnsupportedError: a class that diffusers does not have.
    """
    try:
        found = msgspec.json.decode(text, type=Description)
    except msgspec.MsgspecError as error:
        raise ArtifactError("the model's description", str(error), "one that a build wrote") from None
    cls = own_class(found.class_name, "the model's description: class_name")
    step = found.pixel_multiple
    low, pixels, high = (max(found.pixels * part // 2 // step, 1) * step for part in (1, 2, 3))
    side = low, pixels, high
    ranges: dict[str, tuple[int, int, int]] = {
        "batch": (1, 1, 4),  # not 2: torch takes a size that is 2 where it is not 1 for a constant
        "height": side,
        "width": side,
        "tokens": (min(2, found.tokens), found.tokens, found.tokens),
        "tokens2": (min(2, found.tokens2), found.tokens2, found.tokens2),
        "frames": (found.frames, found.frames, found.frames),
    }
    return ModelSpec(
        name=found.name,
        title=found.class_name,
        description=text,
        subfolder=found.parts.component,
        class_path=f"{cls.__module__}:{cls.__name__}",
        config=found.config,
        act_dtype="bfloat16",
        pixel_multiple=step,
        profile=Profile(**ranges | {symbol: (size, size, size) for symbol, size in found.fixed.items()}),
        calibration_pixels=max(256 // step, 1) * step,
        inputs=found.inputs,
        outputs=(found.output,),
        family=DescribedFamily(found),
        parameters=found.parameters,
    )


def default_values(cls: type[nn.Module], config: Mapping[str, Any]) -> Any:
    """The configuration with the defaults of the class's constructor, as diffusers has it."""
    from diffusers.configuration_utils import FrozenDict

    known = inspect.signature(cls.__init__).parameters.values()
    return FrozenDict({p.name: p.default for p in known if p.default is not p.empty} | dict(config))


class DescribedFamily(Family):
    """What a named model's family says in tables, from a description."""

    def __init__(self, description: Description) -> None:
        self.description = description
        names = [io.name for io in description.inputs]
        rows = [io.name for io in description.inputs if len(io.dims) == 1]
        self.timestep = next((name for name in (*TIMESTEPS, *rows) if name in names), names[0])  # type: ignore[misc]

    @contextlib.contextmanager
    def context(self) -> Iterator[None]:
        """The class's code runs without complex numbers, f64 and autocast."""
        with RealNumbers(), no_autocast():
            yield

    def call(self, sizes: Mapping[str, int], inputs: dict[str, Tensor]) -> dict[str, Any]:
        """What the pipeline gives the module at these sizes, on meta: not only tensors may follow from them."""
        given = _call(self.description, sizes, 1.0, 0, ACT)
        moved: dict[str, Any] = pytree.tree_map(lambda v: v.to("meta") if isinstance(v, Tensor) else v, given)
        return moved

    def arguments(self, inputs: dict[str, Tensor]) -> dict[str, Any]:
        """Keyword arguments of the diffusers module, of the form that the pipeline gives them."""
        return {name: calls.fill(form, inputs) for name, form in self.description.forms.items()}

    def flatten(self, call: dict[str, Any]) -> dict[str, Any]:
        """The inputs in a pipeline's call. What is not as in the calls of the description is left as it is."""
        left = dict(call)
        found: dict[str, Any] = {}
        for name, form in self.description.forms.items():
            inside = "dict" in form and name not in call  # whose entries the Denoiser has opened
            taken = calls.take(form, call if inside else call.get(name))
            if taken is not None:
                found |= taken
                for used in form["dict"] if inside else (name,):
                    left.pop(used, None)
        return left | found

    def fill_input(self, name: str, request: Request) -> Tensor:
        """What the pipeline gives the model at these sizes, for texts of random numbers."""
        made = _inputs(self.description.to_text(), tuple(request.sizes.items()), request.noise, request.seed)
        return made[name]


def _call(found: Description, sizes: Mapping[str, int], noise: float, seed: int, dtype: torch.dtype) -> dict[str, Any]:
    cls = own_class(found.class_name, "class")
    config = default_values(cls, found.config)
    return record(cls, config, found.parts, found.texts, sizes, dtype=dtype, noise=noise, seed=seed)


@functools.lru_cache(maxsize=2)
def _inputs(text: str, sizes: tuple[tuple[str, int], ...], noise: float, seed: int) -> dict[str, Tensor]:
    found = msgspec.json.decode(text, type=Description)
    call = _call(found, dict(sizes), noise, seed, torch.float32)
    inputs: dict[str, Tensor] = {}
    for name, form in found.forms.items():
        inputs |= calls.take(form, call[name]) or {}
    return inputs
