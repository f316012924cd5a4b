"""calib.safetensors: the result of calibration as a file. Letters: K input features, T sampled tokens."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from svdq_trt.artifact.tensor_file import check_finite, save_tensors
from svdq_trt.base.errors import ArtifactError, first_line
from svdq_trt.base.files import parse_json

VERSION = 1
_KEY = "svdq.calibration"  # key in the safetensors metadata
_ACT_DTYPES = (torch.float16, torch.bfloat16)


@dataclass
class Calibration:
    """Statistics and samples of each node's input, by node name.

    Attributes:
        amax: [K] f32, max |x| per channel over all tokens seen.
        x: [T, K] act dtype, rows drawn uniformly from all tokens seen; T differs where few tokens exist.
        meta: the run: model, samples, sizes, seed, source of the inputs.
    """

    amax: dict[str, torch.Tensor]
    x: dict[str, torch.Tensor]
    meta: dict[str, Any] = field(default_factory=dict)

    def save(self, path: str | Path) -> None:
        """Write calib.safetensors whole or not at all. Raises ArtifactError: disk full, not writable."""
        tensors = {f"{node}.amax": t for node, t in self.amax.items()} | {f"{n}.x": t for n, t in self.x.items()}
        note = json.dumps({"version": VERSION, "nodes": list(self.amax), "meta": self.meta})
        save_tensors(path, {k: t.contiguous() for k, t in tensors.items()}, {_KEY: note})

    @classmethod
    def load(cls, path: str | Path, nodes: Sequence[str] | None = None) -> Calibration:
        """Read and check a file; tensors stay mapped, so they take no memory of their own.

        Raises:
            ArtifactError: unreadable, not ours, of another version, damaged, or of nodes other than `nodes`.
        """
        path = Path(path)
        tensors, note = _read(path)
        if note.get("version") != VERSION:
            raise ArtifactError(
                str(path), f"calibration version {note.get('version')}", f"{VERSION}", "Build again with --force."
            )
        found = note.get("nodes")
        if not isinstance(found, list) or not all(isinstance(n, str) for n in found) or len(set(found)) != len(found):
            found = None
        if found is None or not isinstance(note.get("meta"), dict):
            raise ArtifactError(str(path), "damaged metadata", "'nodes' and 'meta'", "Build again with --force.")
        if set(tensors) != {f"{n}.{part}" for n in found for part in ("amax", "x")}:
            raise ArtifactError(
                str(path), "tensors don't match its node list", "amax and x of each", "Build again with --force."
            )
        if nodes is not None and set(found) != set(nodes):
            differ = sorted(set(found) ^ set(nodes))
            raise ArtifactError(
                str(path),
                f"made for other layers ({differ[0]}, {len(differ)} differ)",
                "this model and these skips",
                "Build again with --force.",
            )
        out = cls({n: tensors[f"{n}.amax"] for n in found}, {n: tensors[f"{n}.x"] for n in found}, note["meta"])
        for node in found:
            _check(path, node, out.amax[node], out.x[node])
        return out


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(path), framework="pt") as file:
            note = parse_json((file.metadata() or {}).get(_KEY, "null"))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        reason = first_line(error)
        raise ArtifactError(
            str(path), f"not readable ({reason})", "a calibration file", "Build again with --force."
        ) from error
    if not isinstance(note, dict):
        raise ArtifactError(
            str(path), "no calibration metadata", "a file written by calibration", "Build again with --force."
        )
    return tensors, note


def _check(path: Path, node: str, amax: torch.Tensor, x: torch.Tensor) -> None:
    where = f"{path}: '{node}'"
    if amax.dim() != 1 or x.dim() != 2 or x.shape[1] != len(amax) or not len(x):
        raise ArtifactError(
            where, f"amax {list(amax.shape)}, x {list(x.shape)}", "[K] and [T, K]", "Build again with --force."
        )
    if amax.dtype != torch.float32 or x.dtype not in _ACT_DTYPES:
        raise ArtifactError(where, f"amax {amax.dtype}, x {x.dtype}", "float32 and 16 bit", "Build again with --force.")
    check_finite(where, amax)
    check_finite(where, x)
    if amax.min() < 0:
        raise ArtifactError(where, "negative amax", "absolute maxima", "Build again with --force.")
