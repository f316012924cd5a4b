"""``svdq.safetensors``: the state dict of the quantized model, complete, with what each node is.

Tensors are named as in the module (``<node>.qweight``, ... and the kept 16-bit weights). The header's metadata key
``svdq`` holds JSON: {version, model, format, rank, preset, nodes: [...]}. The model is rebuilt from this file alone.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from svdq_trt.artifact.tensor_file import SAFETENSORS_DTYPES, save_tensors, stream_tensors
from svdq_trt.base.errors import ArtifactError
from svdq_trt.base.files import parse_json
from svdq_trt.contract.formats import FORMATS, Activation
from svdq_trt.contract.weights import SvdqWeights, find_misfit, tensors_of

VERSION = 1
REMAKE = "Make it again: svdq-trt quantize or build with --force."


@dataclass(frozen=True)
class Node:
    """One svdq node: what it is made of and how well it was quantized.

    Attributes:
        name: module path, and the ONNX and TensorRT node name. members: original linears, stacked on N.
        n, k, rank: N, K, R. sqnr_db: output SQNR on calibration tokens; NaN where unknown, as for an imported node.
        trials: (alpha, beta, SQNR in dB on sampled tokens) of every smoothing tried; none where unknown.
    """

    name: str
    members: tuple[str, ...]
    member_rows: tuple[int, ...]
    format: str
    activation: str
    n: int
    k: int
    rank: int
    sqnr_db: float
    alpha: float
    beta: float
    act_unsigned: bool
    act_shift: float
    trials: tuple[tuple[float, float, float], ...] = ()

    @classmethod
    def of(
        cls,
        name: str,
        members: tuple[str, ...],
        member_rows: tuple[int, ...],
        weights: SvdqWeights,
        sqnr_db: float = math.nan,
        alpha: float = 0.0,
        beta: float = 0.0,
        trials: tuple[tuple[float, float, float], ...] = (),
    ) -> Node:
        """The description of `weights`."""
        return cls(
            name,
            members,
            member_rows,
            weights.format.name,
            weights.activation.value,
            weights.n,
            weights.k,
            weights.rank,
            sqnr_db,
            alpha,
            beta,
            weights.act_unsigned,
            weights.act_shift,
            trials,
        )

    def weights(self, tensors: Mapping[str, Tensor]) -> SvdqWeights:
        """Its part of an artifact's tensors."""
        own = tensors_of(self.name, tensors)
        fmt, activation = FORMATS[self.format], Activation(self.activation)
        return SvdqWeights(
            **own, format=fmt, activation=activation, act_unsigned=self.act_unsigned, act_shift=self.act_shift
        )


@dataclass(frozen=True)
class Artifact:
    """An opened svdq.safetensors; `tensors` are memory-mapped."""

    meta: dict[str, Any]
    nodes: tuple[Node, ...]
    tensors: dict[str, Tensor]


def save(path: Path, tensors: Mapping[str, Tensor], meta: dict[str, Any], nodes: list[Node]) -> None:
    """Write the artifact; under its final name only when complete. Raises ArtifactError: disk full, not writable."""
    header = {**meta, "version": VERSION, "nodes": [_to_json(node) for node in nodes]}
    save_tensors(path, tensors, {"svdq": json.dumps(header)})


def save_streamed(
    path: Path, tensors: Mapping[str, Tensor], read: Callable[[str], Tensor], meta: dict[str, Any], nodes: list[Node]
) -> None:
    """Write like `save`, one tensor at a time; a tensor on meta is read with `read` when its turn comes."""
    header = {**meta, "version": VERSION, "nodes": [_to_json(node) for node in nodes]}
    shapes = {name: (SAFETENSORS_DTYPES[str(t.dtype)], tuple(t.shape)) for name, t in tensors.items()}

    def fetch(name: str) -> Tensor:
        return read(name) if tensors[name].is_meta else tensors[name].detach().cpu().contiguous()

    stream_tensors(path, shapes, fetch, {"svdq": json.dumps(header)})


def load(path: Path) -> Artifact:
    """Open and validate.

    Raises:
        ArtifactError: missing, truncated, not ours, or a node whose tensors do not fit its description.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = (file.metadata() or {}).get("svdq")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise ArtifactError(str(path), str(error), "a complete svdq.safetensors", REMAKE) from None
    meta, nodes = _parse(path, header)
    for node in nodes:
        _check_node(path, node, tensors)
    return Artifact(meta, nodes, tensors)


def read_nodes(path: Path) -> tuple[Node, ...]:
    """The nodes alone, without touching the tensors."""
    try:
        with safe_open(path, framework="np") as file:
            header = (file.metadata() or {}).get("svdq")
    except (OSError, SafetensorError) as error:
        raise ArtifactError(str(path), str(error), "a complete svdq.safetensors", REMAKE) from None
    return _parse(path, header)[1]


def _to_json(node: Node) -> dict[str, Any]:
    return asdict(node) | {"sqnr_db": None if math.isnan(node.sqnr_db) else node.sqnr_db}  # JSON has no NaN


def _parse(path: Path, header: str | None) -> tuple[dict[str, Any], tuple[Node, ...]]:
    try:
        meta = parse_json(header or "null")
        _check_meta(meta)
        if meta["version"] != VERSION:
            raise ArtifactError(str(path), f"version {meta['version']}", str(VERSION), REMAKE)
        nodes = tuple(
            Node(
                **{
                    **n,
                    "members": tuple(n["members"]),
                    "member_rows": tuple(n["member_rows"]),
                    "sqnr_db": math.nan if n["sqnr_db"] is None else n["sqnr_db"],
                    "trials": tuple((alpha, beta, db) for alpha, beta, db in n.get("trials", ())),
                }
            )
            for n in meta["nodes"]
        )
        for node in nodes:
            Activation(node.activation), FORMATS[node.format]
            _check_fields(node)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        reason = f"{type(error).__name__}: {error}"[:200].replace("\n", " ")
        raise ArtifactError(str(path), f"no usable header ({reason})", "svdq-trt's own file") from None
    return meta, nodes


def _check_meta(meta: Any) -> None:
    """Raise ValueError or TypeError unless what readers take from the header is of its type, or absent."""
    kinds = {"model": str, "format": str, "rank": int, "nodes": list}
    for key, kind in kinds.items():
        if type(meta.get(key, kind())) is not kind:
            raise ValueError(f"{key} is {str(meta[key])[:40]!r}")
    skip = meta.get("skip", [])
    if not isinstance(skip, list) or not all(isinstance(pattern, str) for pattern in skip):
        raise ValueError(f"skip is {str(skip)[:40]!r}")


def _check_fields(node: Node) -> None:
    """Raise ValueError for values of the wrong type: the header may be anybody's."""
    sizes = (node.n, node.k, node.rank, *node.member_rows)
    texts = (node.name, node.format, node.activation, *node.members)
    numbers = (node.sqnr_db, node.alpha, node.beta, node.act_shift, *(v for trial in node.trials for v in trial))
    good = (
        all(type(v) is int and v >= 0 for v in sizes)
        and all(type(v) is str for v in texts)
        and all(type(v) in (int, float) for v in numbers)
        and type(node.act_unsigned) is bool
        and math.isfinite(node.act_shift)
        and (node.act_shift == 0 or node.act_unsigned)
        and (not node.act_unsigned or FORMATS[node.format].unsigned_codes)
        and len(node.members) == len(node.member_rows) > 0
    )
    if not good or sum(node.member_rows) != node.n:
        raise ValueError(f"node {str(node.name)[:80]!r} is not described as one")


def _check_node(path: Path, node: Node, tensors: Mapping[str, Tensor]) -> None:
    own = tensors_of(node.name, tensors)
    act = own["act_mul"].dtype if "act_mul" in own else torch.float16
    if act not in (torch.float16, torch.bfloat16, torch.float32):
        act = torch.float16
    found = find_misfit(own, FORMATS[node.format], node.n, node.k, node.rank, act)
    if found is not None:
        raise ArtifactError(f"{path}: {node.name}.{found.name}", found.got, found.want, REMAKE)
