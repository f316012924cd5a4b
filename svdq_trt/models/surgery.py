"""Putting nodes into a model in the place of its linears, whatever its class: the model's own forward stays as it was.

Letters: N output features, K input features.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from svdq_trt.models.recipe import LinearGroup, is_pointwise, padding


def install(module: nn.Module, group: LinearGroup, fused: nn.Module) -> None:
    """Put `fused` at the node's name, and what passes its rows on in the place of its members.

    Args:
        fused: x [..., K] -> y [..., N], or [..., N/2] for a gated activation.
    """
    parent, _, leaf = group.node.rpartition(".")
    layers: list[Any] = [module.get_submodule(member) for member in group.members]
    split = parent == group.members[0]
    if split:
        _split(module, group).put(leaf, group, fused)
    else:
        if is_pointwise(layers[0]):
            fused.register_forward_pre_hook(lambda _, args: (args[0].movedim(1, -1),))
            fused.register_forward_hook(lambda _, args, y: y.movedim(-1, 1))
        if more := padding(layers[0].weight[0].numel()):
            fused.register_forward_pre_hook(lambda _, args: (nn.functional.pad(args[0], (0, more)),))
        if len(layers) > 1:
            _share(module, group, fused, layers)
        setattr(module.get_submodule(parent), leaf, fused)
    if group.idle:
        _replace(module, group.idle, FirstHalf() if split and group.activation.gated else nn.Identity())
    if group.then:
        _only(module.get_submodule(group.then.rpartition(".")[0]), group)


def _replace(module: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(module.get_submodule(parent), leaf, new)


class _Shared:
    """A node's y, held until each of its members' places has taken its rows.

    A member that comes again begins a new call: the last one was broken off.
    """

    def __init__(self, fused: nn.Module, count: int) -> None:
        self._fused, self._count = fused, count
        self._y: Tensor | None = None
        self._taken: set[int] = set()

    def take(self, x: Tensor, start: int, stop: int) -> Tensor:
        if self._y is None or start in self._taken:
            self._y, self._taken = self._fused(x), set()
        self._taken.add(start)
        rows = self._y[..., start:stop]
        if len(self._taken) == self._count:
            self._y = None
        return rows


class Part(nn.Module):
    """Stands in the place of a linear whose rows are [start, stop) of a node's."""

    def __init__(self, shared: _Shared, start: int, stop: int) -> None:
        super().__init__()
        self._shared, self._start, self._stop = shared, start, stop

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N of this linear]; the first part that is called runs the node."""
        return self._shared.take(x, self._start, self._stop)


def _share(module: nn.Module, group: LinearGroup, fused: nn.Module, layers: list[Any]) -> None:
    shared, start = _Shared(fused, len(layers)), 0
    for member, layer in zip(group.members, layers, strict=True):
        stop = start + layer.weight.shape[0]
        _replace(module, member, Part(shared, start, stop))
        start = stop


def _only(owner: Any, group: LinearGroup) -> None:
    """Let `owner`, which does nothing else, be the node and the linear behind it."""
    first, second = (name.rpartition(".")[2] for name in (group.node, group.then))

    def forward(x: Tensor) -> Tensor:
        y: Tensor = getattr(owner, second)(getattr(owner, first)(x))
        return y

    owner.forward = forward


class FirstHalf(nn.Module):
    """Stands in the place of a gated activation that a node computes: of value and gate, the first half is its y."""

    def forward(self, x: Tensor) -> Tensor:
        """[..., 2N] -> [..., N]."""
        return x[..., : x.shape[-1] // 2]


class Split(nn.Module):
    """A linear in parts, by columns or by rows; each has a name, and a node in its place when that is installed.

    By columns, x is two tensors side by side, and the outputs are added: the two get scales and a low-rank branch of
    their own. By rows, parts of the output differ in what is behind them. A part with a gated activation gives
    its y twice, as many features as value and gate. The exporter drops what is only joined and taken apart again.
    """

    def __init__(self, whole: nn.Linear, by_columns: bool) -> None:
        super().__init__()
        self.rest = whole
        self.features = whole.in_features if by_columns else whole.out_features
        self.by_columns = by_columns
        self.parts: dict[str, tuple[int, int]] = {}

    def put(self, leaf: str, group: LinearGroup, fused: nn.Module) -> None:
        """Install the node of one part under its name."""
        edges = (group.columns,) if group.columns is not None else group.rows
        assert edges is not None
        self.parts[leaf] = (min(a for a, _ in edges), max(b for _, b in edges))
        setattr(self, leaf, fused)
        if sum(stop - start for start, stop in self.parts.values()) == self.features:
            del self.rest

    def forward(self, x: Tensor) -> Tensor:
        """[..., K] -> [..., N]."""
        return self._added(x) if self.by_columns else self._joined(x)

    def _added(self, x: Tensor) -> Tensor:
        ys = []
        for leaf, (start, stop) in self._all():
            part = x[..., start:stop]
            ys.append(getattr(self, leaf)(part) if leaf else self._remainder(part, start, stop))
        return sum(ys[1:], start=ys[0])

    def _remainder(self, x: Tensor, start: int, stop: int) -> Tensor:
        """The product of input features that no node has, in x's dtype: the model may run in f32."""
        bias = self.rest.bias.to(x.dtype) if start == 0 and self.rest.bias is not None else None
        return nn.functional.linear(x, self.rest.weight[:, start:stop].to(x.dtype), bias)

    def _joined(self, x: Tensor) -> Tensor:
        ys = []
        for leaf, (start, stop) in self._all():
            y = getattr(self, leaf)(x) if leaf else self.rest(x)[..., start:stop]
            ys += [y] * ((stop - start) // y.shape[-1])
        return torch.cat(ys, dim=-1)

    def _all(self) -> list[tuple[str, tuple[int, int]]]:
        """Parts in order, with "" for features that no node has."""
        found, end = [], 0
        for leaf, (start, stop) in sorted(self.parts.items(), key=lambda part: part[1]):
            found += [("", (end, start))] if end < start else []
            found.append((leaf, (start, stop)))
            end = stop
        return [*found, ("", (end, self.features))] if end < self.features else found


def _split(module: nn.Module, group: LinearGroup) -> Split:
    """The parts of the group's member; made for the first of them."""
    (member,) = group.members
    layer = module.get_submodule(member)
    if not isinstance(layer, Split):
        assert isinstance(layer, nn.Linear)
        layer = Split(layer, group.columns is not None)
        _replace(module, member, layer)
    return layer
