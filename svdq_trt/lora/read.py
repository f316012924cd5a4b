"""A LoRA file -> its entries, each with the layers that it acts on, and a list of what cannot be used.

Nothing in the file is trusted: names go through the model's own table, shapes are compared before a value is
read, and values are checked once they are. Letters: N output features, K input features, r a LoRA's own rank.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from svdq_trt.artifact.tensor_file import TensorFile, check_finite
from svdq_trt.base.errors import ArtifactError, UsageError
from svdq_trt.base.files import sha256
from svdq_trt.contract.formats import R_MAX
from svdq_trt.lora.alphas import Alphas
from svdq_trt.lora.names import TEXT_ENCODER, Names, Target
from svdq_trt.lora.tensor_keys import parse_key

Shapes = Mapping[str, tuple[int, ...]]
_LISTED = 8  # problems named in an error; the manifest lists all


@dataclass(frozen=True)
class Entry:
    """One low-rank term: delta = scale * up @ down on the rows in `targets`.

    Attributes:
        name: the layer as the file spells it. rank: r.
        parts: "down", "up" and perhaps "mid" (LoCon's middle convolution) -> tensor name.
    """

    name: str
    targets: tuple[Target, ...]
    rank: int
    scale: float
    parts: Mapping[str, str]
    file: TensorFile = field(repr=False)

    def down(self) -> Tensor:
        """[r, K] f32; K = C·kh·kw for a convolution."""
        down = self._read("down")
        if "mid" in self.parts:  # [r, r, kh, kw] after [r, C, 1, 1]: together one convolution
            down = torch.einsum("abij,bc->acij", self._read("mid"), down.flatten(1))
        return down.flatten(1)

    def up(self) -> Tensor:
        """[N, r] f32, `scale` folded in."""
        return self._read("up").flatten(1) * self.scale

    def _read(self, part: str) -> Tensor:
        name = self.parts[part]
        tensor = self.file.read(name, torch.float32)
        check_finite(f"{self.file.path}: '{name}'", tensor)
        return tensor


@dataclass(frozen=True)
class LoraFile:
    """The contents of a file, for one model.

    Attributes:
        sha256: digest of the file. entries: those that can be used.
        problems: (layer as spelled, why it cannot be used). text_encoder: tensors for a text encoder, left out.
    """

    path: Path
    sha256: str
    entries: tuple[Entry, ...]
    problems: tuple[tuple[str, str], ...]
    text_encoder: int

    def by_layer(self) -> dict[str, list[tuple[Entry, Target]]]:
        """Layer -> the entries that act on it."""
        found: dict[str, list[tuple[Entry, Target]]] = defaultdict(list)
        for entry in self.entries:
            for target in entry.targets:
                found[target.layer].append((entry, target))
        return dict(found)

    def require_whole(self, what: str, fix: str = "--allow-partial leaves them out.") -> None:
        """Raise ArtifactError, listing them, if there are problems."""
        if self.problems:
            refuse_partial(self.path, self.problems, what, fix)

    def require_any(self, what: str) -> None:
        """Raise ArtifactError if nothing can be used at all: the file is for another model."""
        if not self.entries:
            raise ArtifactError(str(self.path), "no tensor that can be used", f"a LoRA of {what}")


def refuse_partial(path: Path, problems: Iterable[tuple[str, str]], what: str, fix: str) -> None:
    """Raise ArtifactError that lists the first problems."""
    problems = list(problems)
    listed = "; ".join(f"{name}: {reason}" for name, reason in problems[:_LISTED])
    more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    raise ArtifactError(
        str(path), f"{len(problems)} layers that cannot be used ({listed}{more})", f"LoRA tensors that fit {what}", fix
    )


def read_lora(path: Path, names: Names, shapes: Shapes) -> LoraFile:
    """Read the header of a LoRA file and sort its tensors; values are read when an entry is used.

    Args:
        path: a .safetensors file. names: the table from svdq_trt.lora.names.name_table.
        shapes: weight shape of each linear and convolution by layer.

    Raises:
        UsageError: not a .safetensors file. ArtifactError: unreadable, malformed.
    """
    if path.suffix != ".safetensors":  # .pt and .bin are pickles, which can run code
        raise UsageError("--lora", f"'{path}'", "a .safetensors file")
    digest = sha256(path)
    file = TensorFile(path)
    alphas = Alphas(path, file.metadata(), file.names)
    parts: dict[str, dict[str, str]] = defaultdict(dict)
    bad: dict[str, str] = {}
    text_encoder = 0
    for name in file.names:
        if TEXT_ENCODER.fullmatch(name):
            text_encoder += 1
            continue
        key = parse_key(name)
        if not key.part:
            bad.setdefault(key.layer, key.reason)
        elif key.part in parts[key.layer]:
            bad.setdefault(key.layer, f"'{name}' and '{parts[key.layer][key.part]}' are the same tensor")
        else:
            parts[key.layer][key.part] = name
    entries: list[Entry] = []
    taken: dict[tuple[str, int], str] = {}
    for layer, own in parts.items():
        if layer in bad:
            continue
        targets = names.get(layer)
        reason = _misfit(file, own, targets, shapes)
        again = next((taken[t.layer, t.start] for t in targets or () if (t.layer, t.start) in taken), None)
        if reason or again:
            bad[layer] = reason or f"the layer of '{again}' again"
            continue
        assert targets is not None
        taken |= {(t.layer, t.start): layer for t in targets}
        rank = file.shape(own["down"])[0]
        scale = alphas.scale(layer, rank, _alpha(file, own.get("alpha")))
        factors = {part: name for part, name in own.items() if part != "alpha"}
        entries.append(Entry(layer, targets, rank, scale, factors, file))
    return LoraFile(path, digest, tuple(entries), tuple(sorted(bad.items())), text_encoder)


def _alpha(file: TensorFile, name: str | None) -> float | None:
    return None if name is None else float(file.read(name, torch.float32).reshape(()))


def _misfit(file: TensorFile, parts: Mapping[str, str], targets: tuple[Target, ...] | None, shapes: Shapes) -> str:
    """Why these tensors cannot act on that layer; empty when they can."""
    if targets is None:
        return "no layer of this model that a LoRA can act on"
    for part in ("down", "up"):
        if part not in parts:
            return f"has no {part} factor"
    got = {part: file.shape(name) for part, name in parts.items()}
    if "alpha" in got and got["alpha"] not in ((), (1,)):
        return f"alpha of shape {list(got['alpha'])}"
    weight = shapes[targets[0].layer]
    rows = max(t.source + t.rows for t in targets)
    rank, up = got["down"][0] if got["down"] else 0, got["up"]
    if not 0 < rank <= R_MAX:
        return f"rank {rank}"
    ones = (1,) * (len(weight) - 2)
    if "mid" in parts:
        inner = got["mid"][1] if len(got["mid"]) > 1 else 0
        want_down, want_mid = (inner, weight[1], *ones), (up[1] if len(up) > 1 else 0, inner, *weight[2:])
        if len(weight) == 2 or got["mid"] != want_mid or got["down"] != want_down:
            return f"shapes {list(got['down'])}, {list(got['mid'])} of a layer {list(weight)}"
        rank = want_mid[0]
    elif got["down"] not in ((rank, *weight[1:]), *(((rank, weight[1], 1, 1),) if len(weight) == 2 else ())):
        return f"down {list(got['down'])}, want {[rank, *weight[1:]]}"
    if up not in ((rows, rank), (rows, rank, 1, 1), (rows, rank, *ones)):
        return f"up {list(up)}, want {[rows, rank]}"
    return ""
