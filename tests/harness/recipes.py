"""A recipe as text: a line for each node or kept layer of a block, blocks that are alike folded.

``python -m tests.harness.recipes`` writes tests/cpu/models/recipes anew, for a change that is meant.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from svdq_trt.contract.formats import FORMATS
from svdq_trt.models import MODELS, LinearGroup, ModelSpec, Recipe, derive, stack_group
from svdq_trt.quantize.curve import node_bytes
from tests.harness import denoisers

FOLDER = Path(__file__).parents[1] / "cpu" / "models" / "recipes"
_BLOCK = re.compile(r"((?:.*[._])?(?:blocks?|layers|refiner|attentions|resnets)\.)(\d+)((?:\..*)?)")


def text(recipe: Recipe) -> str:
    """The nodes in the order in which they run, then what is kept, as ``transformer_blocks.[0-18].ff.net.2 < ...``."""
    found: dict[tuple[str, str, str], list[int]] = {}
    names = [(group.node, _node(group)) for group in recipe.groups]
    names += [(kept.name, f" : {kept.reason}") for kept in recipe.kept]
    for name, rest in names:
        match = _BLOCK.fullmatch(name)
        prefix, index, leaf = match.groups() if match else (name, "-1", "")
        found.setdefault((prefix, leaf, rest), []).append(int(index))
    return "".join(f"{p}{_ranges(indices)}{leaf}{rest}\n" for (p, leaf, rest), indices in found.items())


def weight_bytes(spec: ModelSpec, formats: Sequence[str]) -> dict[str, int]:
    """Of a model in each format, with rank 32 and what is in no node in 16 bit."""
    module = spec.build(tables=False)
    shapes = [stack_group(module, group)[0].shape for group in spec.groups(module)]
    rest = 2 * (spec.parameters - sum(n * k for n, k in shapes))
    return {fmt: rest + sum(node_bytes(FORMATS[fmt], n, k, 32) for n, k in shapes) for fmt in formats}


def _node(group: LinearGroup) -> str:
    """What a node is, with members by what follows the owner of its name."""
    owner, first = group.node.rpartition(".")[0], _BLOCK.fullmatch(group.node)
    members = [".." if member == owner else member.removeprefix(f"{owner}.") for member in group.members]
    if first:
        at = [_BLOCK.fullmatch(member) for member in group.members]
        members = [
            f"+{int(m[2]) - int(first[2])}{m[3]}" if m and m[1] == first[1] and m[2] != first[2] else member
            for m, member in zip(at, members, strict=True)
        ]
    marks = {
        "act": group.activation.value,
        "from": group.x_from.value,
        "norm": (group.source or "").rpartition(".")[2],
        "columns": group.columns,
        "rows": group.rows,
        "idle": group.idle.rpartition(".")[2],
        "then": group.then.rpartition(".")[2],
        "rank": f"x{group.rank_factor}" if group.rank_factor > 1 else "",
    }
    kind = " 16-bit x" if group.weight_only else ""
    return f" <{kind} {' '.join(members)}" + "".join(f" {name}={value}" for name, value in marks.items() if value)


def _ranges(indices: list[int]) -> str:
    """``[0-3,5]``; nothing for what is in no list."""
    parts: list[list[int]] = []
    for index in indices:
        if parts and index == parts[-1][1] + 1:
            parts[-1][1] = index
        else:
            parts.append([index, index])
    return "" if indices == [-1] else f"[{','.join(str(a) if a == b else f'{a}-{b}' for a, b in parts)}]"


def derived(name: str, skip: Sequence[str] = ()) -> Recipe:
    """The recipe of a class that no file of models/ names."""
    calls = [denoisers.call(name, rows, tokens) for rows, tokens in ((8, 32), (16, 64))]
    return derive.recipe(denoisers.build(name), calls, skip)


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, spec in MODELS.items():
        (FOLDER / f"{name}.txt").write_text(text(spec.recipe(spec.build())))
    for name in denoisers.TRACEABLE:
        (FOLDER / f"{name}.txt").write_text(text(derived(name)))
