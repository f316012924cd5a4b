"""A family's table applied to one model: every layer that nunchaku names or stores otherwise than diffusers."""

from __future__ import annotations

import re
from dataclasses import dataclass

from torch import nn

from svdq_trt.base.errors import UnsupportedError
from svdq_trt.interop.families import Family, Row, family_of
from svdq_trt.interop.w4a4 import Rows
from svdq_trt.models import LinearGroup, ModelSpec


@dataclass(frozen=True)
class Layer:
    """One layer of a nunchaku file.

    Attributes:
        row: its line of the table. old, new: full names. members: full names of the diffusers modules.
        n: rows of each member. k: input features (of its part).
        biased: any member has a bias.
    """

    row: Row
    old: str
    new: str
    members: tuple[str, ...]
    n: tuple[int, ...]
    k: int
    biased: bool

    @property
    def rows(self) -> Rows:
        """Where its rows lie in the file."""
        return Rows.of(self.n, self.row.layout)

    def serves(self, group: LinearGroup) -> bool:
        """Does this layer hold the group's weights, all of them or as some of its rows."""
        part = None if group.columns is None else min(group.columns[0], 1)
        return set(group.members) <= set(self.members) and part == self.row.part


def family_for(spec: ModelSpec) -> Family:
    """The family of a model. Raises UnsupportedError: nunchaku has none of that class."""
    name = spec.model_class().__name__
    family = family_of(name)
    if family is None:
        raise UnsupportedError(f"model '{spec.name}'", f"class {name}, unknown to nunchaku", "a model it runs")
    return family


def layers_of(family: Family, module: nn.Module, groups: tuple[LinearGroup, ...]) -> list[Layer]:
    """All layers of the model that the table speaks of, in the model's order.

    Args:
        module: the model with its linears not yet replaced. groups: its nodes; they say where a linear is split.
    """
    modules = dict(module.named_modules())
    found = []
    for block in modules:
        for pattern, table in family.blocks.items():
            if re.fullmatch(pattern, block):
                found += [layer for row in table if (layer := _layer(modules, block, row, groups)) is not None]
    return found


def _layer(modules: dict[str, nn.Module], block: str, row: Row, groups: tuple[LinearGroup, ...]) -> Layer | None:
    members = tuple(f"{block}.{name}" for name in row.members)
    present = [modules[name] for name in members if name in modules]
    if len(present) < len(members):  # a text stream's norm, say, that this model has not
        return None
    weights = [getattr(m, "weight", None) for m in present]
    shapes = [tuple(w.shape) for w in weights if w is not None]
    if len(shapes) < len(present):
        return None
    k = shapes[0][1] if len(shapes[0]) > 1 else 1
    if row.part is not None:
        columns = [g.columns for g in groups if g.members == members and g.columns is not None]
        part = next((c for c in columns if min(c[0], 1) == row.part), None)
        if part is None:
            raise UnsupportedError(members[0], "kept whole in this model", "split in two, as nunchaku stores it")
        k = part[1] - part[0]
    biased = any(getattr(m, "bias", None) is not None for m in present)
    return Layer(row, f"{block}.{row.old}", f"{block}.{row.new}", members, tuple(s[0] for s in shapes), k, biased)
