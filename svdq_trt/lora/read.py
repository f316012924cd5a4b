"""A LoRA file -> its changes, each with the layers that it acts on, and a list of what cannot be used.

Nothing in the file is trusted: names go through the model's own table, shapes are compared before a value is
read, and values are checked once they are.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from svdq_trt.artifact.tensor_file import TensorFile
from svdq_trt.base.errors import ArtifactError, UsageError
from svdq_trt.base.files import sha256
from svdq_trt.lora.alphas import Alphas
from svdq_trt.lora.changes import NUMBERS, Additive, Change, read_number
from svdq_trt.lora.kinds import kind_of
from svdq_trt.lora.names import TEXT_ENCODER, Names, Target
from svdq_trt.lora.products import Kronecker
from svdq_trt.lora.tensor_keys import WHOLE, parse_key
from svdq_trt.lora.weighted import Dora, InputRotation

Shapes = Mapping[str, tuple[int, ...]]
_LISTED = 8  # problems named in an error; the manifest lists all


@dataclass(frozen=True)
class LoraFile:
    """The contents of a file, for one model.

    Attributes:
        sha256: digest of the file. changes: those that can be used.
        problems: (layer as spelled, why it cannot be used). text_encoder: tensors for a text encoder, left out.
    """

    path: Path
    sha256: str
    changes: tuple[Change, ...]
    problems: tuple[tuple[str, str], ...]
    text_encoder: int

    def by_layer(self) -> dict[str, list[tuple[Change, Target]]]:
        """Layer -> the changes that act on it."""
        found: dict[str, list[tuple[Change, Target]]] = defaultdict(list)
        for change in self.changes:
            for target in change.targets:
                found[target.layer].append((change, target))
        return dict(found)

    def require_whole(self, what: str, fix: str = "--allow-partial leaves them out.") -> None:
        """Raise ArtifactError, listing them, if there are problems."""
        if self.problems:
            refuse_partial(self.path, self.problems, what, fix)

    def require_any(self, what: str) -> None:
        """Raise ArtifactError if nothing can be used at all: the file is for another model."""
        if not self.changes:
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
    """Read the header of a LoRA file and sort its tensors; values are read when a change is used.

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
            bad[key.layer] = key.reason
        elif key.part in parts[key.layer]:
            bad[key.layer] = f"{key.part} twice"
        else:
            parts[key.layer][key.part] = name
    changes: list[Change] = []
    taken: dict[tuple[str, int], Change] = {}
    for layer, own in parts.items():
        if layer in bad:
            continue
        found = _change(file, layer, own, names.get(layer), shapes, alphas)
        if isinstance(found, str):
            bad[layer] = found
            continue
        again = [taken[t.layer, t.start] for t in found.targets if (t.layer, t.start) in taken]
        if again:
            if not all(_same(found, other) for other in again):
                bad[layer] = f"the layer of '{again[0].name}' again, with other values"
            continue
        taken |= {(t.layer, t.start): found for t in found.targets}
        changes.append(found)
    return LoraFile(path, digest, tuple(changes), tuple(sorted(bad.items())), text_encoder)


def _change(
    file: TensorFile,
    layer: str,
    parts: Mapping[str, str],
    targets: tuple[Target, ...] | None,
    shapes: Shapes,
    alphas: Alphas,
) -> Change | str:
    """The change of a layer as spelled; or why its tensors make none."""
    if set(parts) <= set(WHOLE) and not alphas.saves_whole(layer):
        return "no LoRA tensor"
    if targets is None:
        return "no layer of this model that a LoRA can act on"
    kind = kind_of(parts)
    if isinstance(kind, str):
        return kind
    of, dora = kind
    sizes = {part: file.shape(name) for part, name in parts.items()}
    if any(0 in size for size in sizes.values()):
        return "a tensor without values"
    if sizes.get("alpha", ()) not in ((), (1,)):
        return f"alpha of shape {list(sizes['alpha'])}"
    weight = shapes[targets[0].layer]
    shape = (max(t.source + t.rows for t in targets), *weight[1:])
    reason = of.misfit(sizes, shape) or (Dora.misfit(sizes, shape) if dora else "")
    if reason:
        return reason
    rank, scale = of.rank_of(sizes), 1.0
    if rank is not None:
        alpha = read_number(file, parts["alpha"], NUMBERS) if "alpha" in parts else None
        scale = alphas.scale(layer, targets, rank, None if alpha is None else float(alpha.reshape(())))
        alphas.require_magnitude(layer, dora)
    elif of is Kronecker and alphas.config_of(layer) is not None:  # PEFT divides by the rank that it was told
        scale = alphas.scale(layer, targets, None, None)
    if of is InputRotation:
        return InputRotation(layer, targets, shape, scale, parts, file, alphas.rotation_terms(layer))
    found = of(layer, targets, shape, scale, parts, file)
    return Dora(found) if dora and isinstance(found, Additive) else found


def _same(one: Change, other: Change) -> bool:
    """Whether two spellings of a layer have the same tensors, as where a file has both for two kinds of readers."""
    if (one.scale, one.parts.keys(), len(one.targets)) != (other.scale, other.parts.keys(), len(other.targets)):
        return False
    pairs = ((one.file.read_stored(one.parts[p]), other.file.read_stored(other.parts[p])) for p in one.parts)
    return all(a.dtype == b.dtype and torch.equal(a.flatten(), b.flatten()) for a, b in pairs)
