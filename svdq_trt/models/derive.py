"""The recipe of a model, derived from a run of it on meta tensors: nothing about a class is written by hand.

What is quantized are the linears, and the convolutions of 1 x 1, of the transformer blocks, and modulation by adaLN.
Letters: N output features, K input features.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import nn

from svdq_trt.contract.formats import ACT_SHIFT, K_MULTIPLE, Activation
from svdq_trt.models import dataflow as flow
from svdq_trt.models.recipe import LinearGroup, Recipe, complete, is_pointwise, weight_layers
from svdq_trt.models.trace import Call, Op, Trace, Value, trace

_GATED = {a.function: a for a in Activation if a.gated}

#: Names of nodes that are not what is common to their members' names, with the rest joined.
_NAMES = {"add_qkv_proj": "to_added_qkv"}

_NOT_RUN = "the model does not run it"
_UNREAD = "nothing reads its result"
_TOUCHED = "the model reads its weight elsewhere, too"
_FIRST = "first layer of a stream: its error enters every block"
_LAST = "last layer: few features, sets the quality of the latent"
_LAST_OF_SEVERAL = "last layer of one of the outputs: its error is another model's input"
_OUTSIDE = "outside the transformer blocks: its error enters all that follow"
_PER_IMAGE = "one row per image, on which many blocks depend"
_ADDED = "one row per image, which is added to the tokens"
_DEPTHWISE = "depthwise convolution: few weights per channel, nothing to gain"
_CONVOLUTION = "no 4-bit convolution kernel"


def recipe(
    module: nn.Module, calls: Sequence[Mapping[str, Any]], skip: Sequence[str] = (), kv_blocks: int = 1
) -> Recipe:
    """Derive what is quantized in which node, and why the other layers stay in 16 bit.

    Args:
        module: a denoiser on meta, not changed yet.
        calls: keyword arguments of its forward at two sizes. Every size that may vary is larger in the second (image
            and text; not the batch), so that what has one row per image is told from tokens. Tensors are on meta;
            lists, tuples and dictionaries may hold them.
        skip: see `complete`.
        kv_blocks: blocks in a row whose cross-attention keys and values share a node.

    Raises:
        UnsupportedError: names what in the model cannot be traced.
        UsageError: an entry of `skip` that matches no node.
    """
    return complete(module, *nodes(module, trace(module, calls), kv_blocks), skip)


def nodes(module: nn.Module, run: Trace, kv_blocks: int = 1) -> tuple[list[LinearGroup], dict[str, str]]:
    """The nodes in the order in which they run, and why each other layer stays in 16 bit; `run` is the module's."""
    rules = Derivation(module, run, kv_blocks)
    return rules.groups(), rules.reasons


@dataclass
class _Unit:
    """A node before those with the same x are joined.

    Attributes:
        group: the node. x: its input. block: the transformer block that it is in, or "".
        index: when it runs.
        joins: units of an equal value and x become one node; None stays alone.
    """

    group: LinearGroup
    x: Value
    block: str
    index: int
    joins: str | None


@dataclass
class _Activated:
    """An activation behind one or two layers.

    Attributes:
        activation: what it is.
        parts: (layer, start, stop) of the features that it takes, in the order in which a node stacks them.
        last: the operation whose result is the activation's.
    """

    activation: Activation
    parts: list[tuple[str, int, int]]
    last: Op


class Derivation:
    """The rules, on one trace.

    Attributes:
        reasons: why each layer that is in no node stays in 16 bit.
    """

    def __init__(self, module: nn.Module, run: Trace, kv_blocks: int) -> None:
        self.module, self.run, self.kv_blocks = module, run, kv_blocks
        self.layers = weight_layers(module)
        self.products: dict[str, list[Op]] = {}
        for op in run.ops:
            if op.layer:
                self.products.setdefault(op.layer, []).append(op)
        self.alive = flow.before(run.results)
        self.blocks = {self._element(op.scope) for op in run.ops if flow.is_attention(op)} - {""}
        self.text_alone = {layer for op in run.ops for layer in flow.layers_of_other_keys(op)}
        self.reasons = {name: reason for name in self.layers if (reason := self._reason(name))}

    def groups(self) -> list[LinearGroup]:
        """The nodes, in the order in which they run."""
        quantized = [name for name in self.products if name not in self.reasons]
        units = [unit for name in quantized for unit in self._activated_units(name)]
        owned = {member for unit in units for member in unit.group.members}
        units += (unit for name in quantized if name not in owned for unit in self._plain_units(name))
        return [unit.group for unit in sorted(self._joined(units), key=lambda unit: unit.index)]

    # ---- why a layer stays in 16 bit ---------------------------------------------------------------------------------

    def _reason(self, name: str) -> str:
        """Why a layer stays in 16 bit; "" for one that is quantized."""
        if name not in self.products:
            return _NOT_RUN
        layer, product = self.layers[name], self.products[name][0]
        if not self.alive & set(self.products[name]):
            return _UNREAD
        touched = _TOUCHED if name in self.run.touched else ""
        if not isinstance(layer, nn.Linear) and not is_pointwise(layer):
            depthwise = getattr(layer, "groups", 1) > 1
            return _DEPTHWISE if depthwise else self._edge(product) or _CONVOLUTION
        if name in self.text_alone and self._block(name):
            return touched
        if not product.outputs[0].grows:
            return self._per_image(product.outputs[0]) or touched
        return touched if self._block(name) else self._edge(product) or _OUTSIDE

    def _edge(self, product: Op) -> str:
        """The reason of the first or last layer on a way through the model; "" for one in between."""
        if not any(op.layer for op in flow.before([product.inputs[0]])):
            return _FIRST
        if any(op.layer for op in flow.behind(product.outputs[0])):
            return ""
        whole = all(product in flow.before([result]) for result in self.run.results)
        return _LAST if whole else _LAST_OF_SEVERAL

    def _per_image(self, y: Value) -> str:
        """The reason of a layer with one row per image; "" for the modulation of one block's tokens."""
        uses = list(flow.uses_by_tokens(y))
        if any(op.layer for op in uses) or len({self._block(op.scope) for op in uses}) != 1:
            return _PER_IMAGE
        return "" if any(flow.is_product(op) for op in uses) else _ADDED

    def _block(self, name: str) -> str:
        """The transformer block that a layer or module is in; "" if it is in none."""
        return next((path for path in _paths(name) if path in self.blocks), "")

    def _element(self, name: str) -> str:
        """The innermost element of a list of modules that `name` is in; "" if it is in none.

        A list of several classes is not one of blocks, but of a block's layers.
        """
        for path in _paths(name):
            parent, _, leaf = path.rpartition(".")
            owner = self.module.get_submodule(parent)
            if leaf.isdigit() and isinstance(owner, nn.ModuleList) and len({type(one) for one in owner}) == 1:
                return path
        return ""

    # ---- the nodes of one layer --------------------------------------------------------------------------------------

    def _activated_units(self, name: str) -> list[_Unit]:
        """The nodes of a linear that an activation reads: one, and one for features that it does not read, if any."""
        behind = [self._activation_behind(name, product) for product in self.products[name]]
        group = self._folded([found for found in behind if found]) if all(behind) else None
        if group is None:
            return []
        width = self._features(name)
        rest = _rest(group.rows or ((0, width),), width)
        groups = [LinearGroup(f"{name}.qkv", (name,), rows=rest), group] if rest else [group]
        return [self._unit(group) for group in groups]

    def _plain_units(self, name: str) -> list[_Unit]:
        """The node of a layer without an activation; two where it reads two tensors side by side."""
        product = self.products[name][0]
        weight_only = name in self.text_alone or not product.outputs[0].grows
        if len(self.products[name]) > 1 or not isinstance(self.layers[name], nn.Linear):
            return [self._unit(LinearGroup(name, (name,), weight_only=weight_only))]
        parts = flow.side_by_side(flow.root(product.inputs[0]))
        leaves = ["attn" if self._from_attention(part) else "mlp" for part in parts]
        edges = list(itertools.accumulate((part.shape[-1] for part in parts), initial=0))
        if sorted(leaves) == ["attn", "mlp"] and not any(edge % K_MULTIPLE for edge in edges):
            return [
                self._unit(LinearGroup(f"{name}.{leaf}", (name,), columns=columns), part)
                for leaf, columns, part in zip(leaves, itertools.pairwise(edges), parts, strict=True)
            ]
        joins = None if weight_only else name.rpartition(".")[0]
        if name in self.text_alone:
            joins = "text"
        return [self._unit(LinearGroup(name, (name,), weight_only=weight_only), joins=joins)]

    def _from_attention(self, value: Value) -> bool:
        return any(flow.is_attention(op) for op in flow.before([value], through_layers=False))

    def _unit(self, group: LinearGroup, x: Value | None = None, joins: str | None = None) -> _Unit:
        """The unit of a node, with what is known of its x; `x` where that is a part of its layer's."""
        products = self.products[group.members[0]]
        xs = [flow.root(product.inputs[0]) for product in products] if x is None else [flow.root(x)]
        if not group.weight_only:
            kinds, norms = {flow.activation(x.op) for x in xs}, {self._norm(x) for x in xs}
            kind = kinds.pop() if len(kinds) == 1 else Activation.NONE
            source = norms.pop() if len(norms) == 1 else None
            group = replace(group, source=source, x_from=kind if kind in ACT_SHIFT else Activation.NONE)
        return _Unit(group, xs[0], self._block(group.members[0]), products[0].index, joins)

    def _norm(self, x: Value) -> str | None:
        """The norm with weights whose output is x."""
        if x.op is None:
            return None
        norm: Any = self.module.get_submodule(x.op.scope)
        own = type(norm).__name__.endswith("Norm") and getattr(norm, "weight", None) is not None
        outputs = [flow.root(y) for call in self.run.calls[x.op.scope] for y in call.outputs] if own else []
        return x.op.scope if x in outputs else None

    # ---- activations -------------------------------------------------------------------------------------------------

    def _activation_behind(self, name: str, product: Op) -> _Activated | None:
        """The one activation that reads features of the linear `name`, in one of its calls."""
        if not isinstance(self.layers[name], nn.Linear):
            return None
        uses = list(flow.uses(product.outputs[0]))
        found = [self._activated(use) for use in uses if flow.activation(use.op) is not Activation.NONE]
        if len(found) != 1 or found[0] is None:
            return None
        own = [(a, b) for layer, a, b in found[0].parts if layer == name]
        others = [use for use in uses if not any(a < use.stop and use.start < b for a, b in own)]
        return found[0] if len(own) + len(others) == len(uses) else None

    def _activated(self, use: flow.Use) -> _Activated | None:
        """The activation that reads `use`, with the value that it gates, if any."""
        kind, gate = flow.activation(use.op), flow.origin(use.value)
        product = flow.only_reader(use.op.outputs[0])
        if product is None or not flow.is_product(product):
            return _Activated(kind, [gate], use.op)
        value = flow.origin(next(v for v in product.inputs if use.op not in flow.before([v], through_layers=False)))
        fits = value[0] in self.layers and value[0] not in self.reasons and kind in _GATED
        if not fits or value[2] - value[1] != gate[2] - gate[1]:
            return _Activated(kind, [gate], use.op)
        return _Activated(_GATED[kind], [value, gate], product)

    def _folded(self, found: list[_Activated]) -> LinearGroup | None:
        """The node that computes an activation as well; None where the model can't be made to leave it out.

        Args:
            found: the activation in each call of its layers.
        """
        one = found[0]
        members = tuple(dict.fromkeys(layer for layer, _, _ in one.parts))
        xs = [[flow.root(product.inputs[0]) for product in self.products[m]] for m in members]
        if any((f.activation, f.parts) != (one.activation, one.parts) for f in found) or xs[0] != xs[-1]:
            return None
        rows = tuple((a, b) for _, a, b in one.parts)
        whole = sum(b - a for a, b in rows) == sum(self._features(m) for m in members)
        group = LinearGroup(_fused(members), members, one.activation)
        if len(members) == 1 and not (whole and sorted(rows) == list(rows)):
            group = replace(group, rows=rows)
        if not whole:
            fits = len(members) == len(found) == 1 and self._passes(found)
            return replace(group, node=f"{members[0]}.mlp", idle=one.last.scope) if fits else None
        owner, ys = members[0].rpartition(".")[0], [f.last.outputs[0] for f in found]
        if len(members) == 1 and self._is_all(owner, xs[0], ys, {*members}):
            return replace(group, node=owner)
        if self._passes(found):
            return replace(group, idle=one.last.scope)
        then = [flow.only_reader(y) for y in ys]
        name = then[0].layer if then[0] is not None else ""
        if name and self._is_all(owner, xs[0], [op.outputs[0] for op in then if op], {*members, name}):
            return replace(group, then=name)
        return None

    def _features(self, name: str) -> int:
        """N of a linear."""
        return self.products[name][0].outputs[0].shape[-1]

    def _is_all(self, name: str, xs: list[Value], ys: list[Value], layers: set[str]) -> bool:
        """Whether the module `name` makes each y from its x alone, with `layers` and no others."""
        calls = self.run.calls.get(name, [])
        return (
            [[flow.root(v) for v in call.inputs] for call in calls] == [[x] for x in xs]
            and [[flow.root(v) for v in call.outputs] for call in calls] == [[flow.root(y)] for y in ys]
            and {layer for layer in self.products if layer.startswith(f"{name}.")} == layers
        )

    def _passes(self, found: list[_Activated]) -> bool:
        """Whether the activation is all that a module does, which takes nothing else."""
        name = found[0].last.scope
        calls = self.run.calls.get(name, [])
        if len(calls) != len(found) or any(layer.startswith(f"{name}.") for layer in self.layers):
            return False
        return all(_is_call(call, one) for call, one in zip(calls, found, strict=True))

    # ---- nodes that share x ------------------------------------------------------------------------------------------

    def _joined(self, units: Sequence[_Unit]) -> Iterator[_Unit]:
        """The units, those that read the same x as one where they may."""
        shared: dict[Any, list[_Unit]] = {}
        for unit in units:
            if unit.joins is None:
                yield unit
            else:
                place = unit.block.rpartition(".")[0] if unit.joins == "text" else unit.block
                shared.setdefault((unit.x, place, unit.joins), []).append(unit)
        for (_, _, joins), same in shared.items():
            blocks = list(dict.fromkeys(unit.block for unit in same))
            step = self.kv_blocks if joins == "text" else 1
            for first in range(0, len(blocks), step):
                yield self._one([unit for unit in same if unit.block in blocks[first : first + step]])

    def _one(self, units: list[_Unit]) -> _Unit:
        """The unit of all members of `units`."""
        members = tuple(member for unit in units for member in unit.group.members)
        blocks = len({unit.block for unit in units})
        group = replace(units[0].group, node=_fused(members), members=members, rank_factor=blocks)
        return replace(units[0], group=group)


def _is_call(call: Call, found: _Activated) -> bool:
    """Whether a call of a module takes what the activation does, side by side, and returns its result."""
    if len(call.inputs) != 1:
        return False
    layer, start, stop = flow.origin(call.inputs[0])
    own = sorted((a, b) for part, a, b in found.parts if part == layer)
    side_by_side = [start, *(b for _, b in own)] == [*(a for a, _ in own), stop]
    return side_by_side and [flow.root(v) for v in call.outputs] == [flow.root(found.last.outputs[0])]


def _paths(name: str) -> Iterator[str]:
    """`name` and the modules that it is in, from the inside out."""
    while name:
        yield name
        name = name.rpartition(".")[0]


def _rest(taken: Sequence[tuple[int, int]], width: int) -> tuple[tuple[int, int], ...]:
    """The features of `width` that are not taken."""
    ends = [0, *(stop for _, stop in sorted(taken))]
    starts = [*(start for start, _ in sorted(taken)), width]
    return tuple((end, start) for end, start in zip(ends, starts, strict=True) if end < start)


def _fused(members: Sequence[str]) -> str:
    """The name of the node of `members`: to_q, to_k and to_v make to_qkv; at the first of several modules."""
    owner = members[0].rpartition(".")[0]
    leaves = list(dict.fromkeys(member.rpartition(".")[2] for member in members))
    if len(leaves) > 1:
        head = _common(leaves)
        tail = _common([leaf.removeprefix(head)[::-1] for leaf in leaves])[::-1]
        middle = (leaf.removeprefix(head).removesuffix(tail) for leaf in leaves)
        letters = itertools.groupby(middle, key=lambda part: len(part) == 1)
        leaf = head + "_".join("".join(parts) if short else "_".join(parts) for short, parts in letters) + tail
    else:
        (leaf,) = leaves
    return ".".join(filter(None, (owner, _NAMES.get(leaf, leaf))))


def _common(names: Sequence[str]) -> str:
    """What all names begin with."""
    same = itertools.takewhile(lambda letters: len({*letters}) == 1, zip(*names, strict=False))
    return "".join(letters[0] for letters in same)
