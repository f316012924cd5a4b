"""``Family``: how a class of diffusers is made exportable and calibrated, as tables; one subclass per model."""

from __future__ import annotations

import contextlib
import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from types import MethodType
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from svdq_trt.models import surgery
from svdq_trt.models.attention import check_attention
from svdq_trt.models.recipe import LinearGroup
from svdq_trt.models.synthetic import Fill, Request, normal

_T = TypeVar("_T")


class Family:
    """Rules for one class of diffusers. A model fills in the tables and overrides only what no table can say.

    Patterns are regular expressions that match a whole dotted name.

    Attributes:
        kv_blocks: transformer blocks in a row whose cross-attention keys and values share a node, with as much rank as
            separate nodes would have together.
        processors: (pattern, processor class of attentions of that name).
        synthetic: (pattern, synthetic values of inputs of that name); inputs without an entry are standard normal.
        forward: what a wrapped module computes from the inputs by name, where diffusers' own can't be exported.
        timestep: name of the input that says at which step of denoising a call is.
        lists: arguments and results that are lists of tensors, which inputs and outputs are by name NAME_0, NAME_1, ...
        results: names of what the module returns; empty where that is the one output.
        absent: parts of the class that this model has not, for which pipelines ask.
        WRAPPED: attribute of what `wrap` returns that holds the module itself.
    """

    kv_blocks: ClassVar[int] = 1
    processors: ClassVar[Sequence[tuple[str, type]]] = ()
    synthetic: ClassVar[Sequence[tuple[str, Fill]]] = ()
    forward: ClassVar[Callable[..., tuple[Tensor]] | None] = None
    timestep: ClassVar[str] = "timestep"
    lists: ClassVar[Sequence[str]] = ()
    results: ClassVar[Sequence[str]] = ()
    absent: ClassVar[Sequence[str]] = ()
    WRAPPED: ClassVar[str] = "model"

    def prepare(self, module: nn.Module) -> None:
        """Change what must differ from diffusers before weights are loaded, such as tables. By default nothing."""

    def install(self, module: nn.Module, group: LinearGroup, fused: nn.Module) -> None:
        """Put `fused` in the place of its members; attentions that lose theirs get the processor that knows it."""
        surgery.install(module, group, fused)
        if len(group.members) > 1:
            for owner in dict.fromkeys(member.rpartition(".")[0] for member in group.members):
                self._set_processor(owner, module.get_submodule(owner))

    def wrap(self, module: nn.Module, inputs: Sequence[str]) -> nn.Module:
        """The module as the exporter takes it: tensors named `inputs`, by position or by name, to its outputs.

        Attentions get processors that know fused linears. `module` is changed; it is the result's attribute WRAPPED.
        """
        for name, part in module.named_modules():
            self._set_processor(name, part)
        if self.forward is not None:
            module.forward = MethodType(self.forward, module)
        return _flat_class(tuple(inputs))(module, self)

    def context(self) -> contextlib.AbstractContextManager[Any]:
        """The context in which the diffusers module runs. By default none."""
        return contextlib.nullcontext()

    def _set_processor(self, name: str, part: Any) -> None:
        """Give the module called `name` its processor, if the table has one."""
        processor = self.processor_of(name)
        if processor is not None:
            check_attention(name, part, processor)
            part.set_processor(processor())

    def processor_of(self, name: str) -> type | None:
        """The processor class of an attention in the table `processors`; None where its name is not in it."""
        return _first(self.processors, name)

    def arguments(self, inputs: dict[str, Tensor]) -> dict[str, Any]:
        """Keyword arguments of the diffusers module for the inputs by name. By default the inputs and their lists."""
        return gather(inputs, self.lists)

    def wrapped_arguments(self, inputs: dict[str, Tensor]) -> dict[str, Any]:
        """Keyword arguments of a wrapped module: the inputs themselves where it has the family's `forward`."""
        return self.arguments(inputs) if self.forward is None else inputs

    def call(self, sizes: Mapping[str, int], inputs: dict[str, Tensor]) -> dict[str, Any]:
        """A call of the wrapped module at these sizes, by which it is traced. By default `wrapped_arguments`."""
        return self.wrapped_arguments(inputs)

    def flatten(self, call: dict[str, Any]) -> dict[str, Any]:
        """The inverse of `arguments`: what a pipeline gives the diffusers module, by name -> inputs by name.

        Values may be of any kind that pipelines give: tensors, numbers, lists of either, None. Entries of dictionaries
        such as added_cond_kwargs come by names of their own. What is returned under a name that is no input, and is
        not None, is refused: nothing is dropped. An input may be `Samples`, whose sizes
        differ. What is in `lists` stays a list. By default the values themselves.
        """
        return call

    def outputs(self, returned: Sequence[Any]) -> tuple[Tensor, ...]:
        """The outputs, in order, in what the diffusers module returns as a tuple."""
        if not self.results:
            return (returned[0],)
        named = {name: value for name, value in zip(self.results, returned, strict=True) if value is not None}
        return tuple(spread(named, self.lists).values())

    def returned(self, outputs: dict[str, Tensor]) -> tuple[Any, ...]:
        """The inverse of `outputs`: what the diffusers module returns, from the outputs by name."""
        named = gather(outputs, self.lists)
        return tuple(map(named.get, self.results)) if self.results else tuple(outputs.values())

    def fill_input(self, name: str, request: Request) -> Tensor:
        """Synthetic values of one input, with the statistics of real ones; they are no substitute for real prompts."""
        return (_first(self.synthetic, name) or normal)(request)


def spread(values: Mapping[str, Any], lists: Sequence[str]) -> dict[str, Any]:
    """The values with the tensors of each list by names of their own."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        found |= {f"{name}_{i}": item for i, item in enumerate(value)} if name in lists else {name: value}
    return found


def gather(values: Mapping[str, Any], lists: Sequence[str]) -> dict[str, Any]:
    """The inverse of `spread`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        owner = name.rpartition("_")[0]
        if owner in lists:
            found.setdefault(owner, []).append(value)
        else:
            found[name] = value
    return found


def _first(table: Sequence[tuple[str, _T]], name: str) -> _T | None:
    """The value of the first pattern that matches the whole name."""
    return next((value for pattern, value in table if re.fullmatch(pattern, name)), None)


class _Flat(nn.Module):
    """A model with flat inputs, one tensor each, of which its family makes the module's own arguments.

    Its output is a tensor; a tuple of them where a model has several.
    """

    def __init__(self, model: nn.Module, family: Family) -> None:
        super().__init__()
        self.model = model
        self._family = family


@functools.cache
def _flat_class(names: tuple[str, ...]) -> type[_Flat]:
    """A _Flat whose forward has parameters `names`; torch.export reads them from its signature."""

    def forward(self: _Flat, *args: Tensor, **kwargs: Tensor) -> Tensor | tuple[Tensor, ...]:
        inputs = flat.bind(self, *args, **kwargs).arguments
        del inputs["self"]
        with self._family.context():
            returned = self.model(**self._family.wrapped_arguments(inputs), return_dict=False)
        outputs = self._family.outputs(returned)
        return outputs if self._family.results else outputs[0]

    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", *names)]
    flat = inspect.Signature(parameters)
    forward.__signature__ = flat  # type: ignore[attr-defined]
    return type("Flat", (_Flat,), {"forward": forward})
