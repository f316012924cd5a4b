"""``Family``: how a class of diffusers is quantized, exported and calibrated, as tables; one subclass per model."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

from torch import Tensor, nn

from svdq_trt.base.errors import UnsupportedError
from svdq_trt.models.attention import check_attention
from svdq_trt.models.recipe import LinearGroup, Recipe, complete, weight_layers
from svdq_trt.models.synthetic import Fill, Request, normal

_T = TypeVar("_T")

#: The nodes of a module, by names inside it; or a function (the module's name, the module) -> such nodes.
Nodes = Sequence[LinearGroup] | Callable[[str, Any], Sequence[LinearGroup]]


class Family:
    """Rules for one class of diffusers. A model fills in the tables and overrides only what no table can say.

    Patterns are regular expressions that match a whole dotted name.

    Attributes:
        nodes: (pattern, nodes of each module of that name), in the order they run; "" is the model itself. A node is
            left out of a module that lacks its linears, as not every block has all of them.
        reasons: (pattern, why a layer of that name that no node owns stays in 16 bit); the first match wins.
        processors: (pattern, processor class of attentions of that name).
        synthetic: (pattern, synthetic values of inputs of that name); inputs without an entry are standard normal.
        WRAPPED: attribute of what `wrap` returns that holds the module itself.
    """

    nodes: ClassVar[Sequence[tuple[str, Nodes]]] = ()
    reasons: ClassVar[Sequence[tuple[str, str]]] = ()
    processors: ClassVar[Sequence[tuple[str, type]]] = ()
    synthetic: ClassVar[Sequence[tuple[str, Fill]]] = ()
    WRAPPED: ClassVar[str] = "model"

    def prepare(self, module: nn.Module) -> None:
        """Change what must differ from diffusers before weights are loaded, such as tables. By default nothing."""

    def recipe(self, module: nn.Module, skip: Sequence[str]) -> Recipe:
        """The recipe: which linears are fused into which nodes, and why the others stay in 16 bit.

        Args:
            module: a model that has not been changed yet.
            skip: see `complete`.

        Raises:
            UnsupportedError: a layer that no node owns and no reason covers.
            UsageError: an entry of `skip` that matches no node.
        """
        layers = weight_layers(module)
        candidates = [group for group in self._candidates(module) if layers.keys() >= set(group.members)]
        owned = {member for group in candidates for member in group.members}
        return complete(module, candidates, {name: self._reason(name) for name in layers if name not in owned}, skip)

    def install(self, module: nn.Module, group: LinearGroup, fused: nn.Module) -> None:
        """Put `fused` at the node's name, in place of its members; their owner gets the processor that knows it."""
        if len(group.members) > 1:
            for member in group.members:
                owner, _, leaf = member.rpartition(".")
                delattr(module.get_submodule(owner), leaf)
                self._set_processor(owner, module.get_submodule(owner))
        parent, _, leaf = group.node.rpartition(".")
        setattr(module.get_submodule(parent), leaf, fused)

    def wrap(self, module: nn.Module, inputs: Sequence[str]) -> nn.Module:
        """The module as the exporter takes it: tensors named `inputs`, by position or by name, and one output tensor.

        Attentions get processors that know fused linears. `module` is changed; it is the result's attribute WRAPPED.
        """
        for name, part in module.named_modules():
            self._set_processor(name, part)
        return _flat_class(tuple(inputs))(module, self.arguments)

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
        """Keyword arguments of the diffusers module for the inputs by name. By default the inputs themselves."""
        return inputs

    def fill_input(self, name: str, request: Request) -> Tensor:
        """Synthetic values of one input, with the statistics of real ones; they are no substitute for real prompts."""
        return (_first(self.synthetic, name) or normal)(request)

    def _candidates(self, module: nn.Module) -> list[LinearGroup]:
        """The nodes in the table `nodes`, with their names in the model."""
        found: list[LinearGroup] = []
        for pattern, nodes in self.nodes:
            for name, part in module.named_modules():
                if re.fullmatch(pattern, name):
                    found += (node.within(name) for node in (nodes(name, part) if callable(nodes) else nodes))
        return found

    def _reason(self, layer: str) -> str:
        reason = _first(self.reasons, layer)
        if reason is None:
            raise UnsupportedError(f"layer '{layer}'", "no rule for it", f"a layer that {type(self).__name__} knows")
        return reason


def _first(table: Sequence[tuple[str, _T]], name: str) -> _T | None:
    """The value of the first pattern that matches the whole name."""
    return next((value for pattern, value in table if re.fullmatch(pattern, name)), None)


class _Flat(nn.Module):
    """A denoiser with flat inputs, one tensor each; `arguments` turns them into the module's own arguments."""

    def __init__(self, model: nn.Module, arguments: Callable[[dict[str, Tensor]], dict[str, Any]]) -> None:
        super().__init__()
        self.model = model
        self._arguments = arguments


@functools.cache
def _flat_class(names: tuple[str, ...]) -> type[_Flat]:
    """A _Flat whose forward has parameters `names`; torch.export reads them from its signature."""

    def forward(self: _Flat, *args: Tensor, **kwargs: Tensor) -> Tensor:
        inputs = flat.bind(self, *args, **kwargs).arguments
        del inputs["self"]
        out: Tensor = self.model(**self._arguments(inputs), return_dict=False)[0]
        return out

    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", *names)]
    flat = inspect.Signature(parameters)
    forward.__signature__ = flat  # type: ignore[attr-defined]
    return type("Flat", (_Flat,), {"forward": forward})
