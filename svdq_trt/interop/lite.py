"""Nunchaku Lite of diffusers: linears under diffusers' names in nunchaku's order, unpadded, with signed codes alone.

`quantization_config` of config.json names the targets: `svdq_w4a4` of one rank, and `awq_w4a16`, whose rows are in the
model's own order. A header's `runtime_manifest` says the same of each target.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from svdq_trt.base.errors import ArtifactError, ShapeError, UnsupportedError
from svdq_trt.checkpoint.config_check import compare_config
from svdq_trt.contract.formats import INT4, NVFP4
from svdq_trt.interop import awq
from svdq_trt.interop.container import header_object
from svdq_trt.interop.layouts import LITE
from svdq_trt.interop.linears import Found, Ordered, read_linears
from svdq_trt.interop.order import Order
from svdq_trt.interop.packing import TILE
from svdq_trt.interop.reader import Reader
from svdq_trt.interop.result import Imported
from svdq_trt.models import ModelSpec

_GROUPS = {INT4.name: INT4.weight_group, NVFP4.name: NVFP4.weight_group}


def read_lite(reader: Reader, spec: ModelSpec) -> Imported:
    """Everything in the file, checked against the model and against what the file declares.

    Raises:
        ArtifactError, ShapeError, RangeError: naming what does not fit.
    """
    config = header_object(reader, "config") or header_object(reader, "config.json")
    declared = config.pop("quantization_config", None)
    if config:
        compare_config(spec, config, f"{reader.where}: config")
    targets = _of_config(reader, declared) if declared is not None else _of_manifest(reader)
    return read_linears(_File(reader, spec, targets), spec)


def _of_config(reader: Reader, declared: Any) -> dict[str, str]:
    """Target -> its format. Raises ArtifactError: no such configuration."""
    where = f"{reader.where}: quantization_config"
    targets: dict[str, str] = {}
    for op in ("svdq_w4a4", "awq_w4a16"):
        part = declared.get(op) if isinstance(declared, dict) else None
        if part is None:
            continue
        precision, names = (part.get("precision"), part.get("targets")) if isinstance(part, dict) else (None, None)
        formats = _GROUPS if op == "svdq_w4a4" else {"int4": 64}
        if not isinstance(precision, str) or part.get("group_size") != formats.get(precision):
            raise ArtifactError(where, f"{op} {part!r:.60}", "a precision of Nunchaku Lite with its group_size")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ArtifactError(where, f"{op} targets {names!r:.60}", "a list of module names")
        targets |= dict.fromkeys(names, precision if op == "svdq_w4a4" else "w4a16")
    if not targets:
        raise ArtifactError(where, "no targets", "svdq_w4a4 or awq_w4a16 with targets")
    return targets


def _of_manifest(reader: Reader) -> dict[str, str]:
    """Target -> its format, by the header's runtime_manifest."""
    where = f"{reader.where}: metadata 'runtime_manifest'"
    listed = header_object(reader, "runtime_manifest").get("targets")
    if not isinstance(listed, list) or not all(isinstance(target, dict) for target in listed) or not listed:
        raise ArtifactError(
            where, f"targets {listed!r:.60}", "a list of targets", "Or give the folder, with config.json."
        )
    found: dict[str, str] = {}
    for target in listed:
        name, op, precision = (target.get(key) for key in ("checkpoint_prefix", "nunchaku_op", "precision"))
        fmt = {"int4": "int4", "fp4": "nvfp4", "nvfp4": "nvfp4"}.get(precision) if op == "svdq_w4a4" else "w4a16"
        if not isinstance(name, str) or op not in ("svdq_w4a4", "awq_w4a16") or fmt is None:
            got = f"a target {name!r:.60} of {op!r:.30}, {precision!r:.30}"
            raise UnsupportedError(where, got, "svdq_w4a4 or awq_w4a16 of int4 or fp4")
        if target.get("source_modules") not in (None, [name]):
            raise UnsupportedError(where, f"'{name:.60}' of several modules", "one module a target")
        found[name] = fmt
    return found


class _File(Ordered):
    def __init__(self, reader: Reader, spec: ModelSpec, targets: Mapping[str, str]) -> None:
        super().__init__(reader, spec, LITE, Order.FRAGMENTS)
        self.targets = targets
        stored = {name.removesuffix(".qweight") for name in reader.names if name.endswith(".qweight")}
        if odd := sorted(stored ^ set(targets)):
            got = f"'{odd[0]}' {'quantized, but no target' if odd[0] in stored else 'a target, but not quantized'}"
            raise ArtifactError(f"{reader.where}: quantization_config", got, "targets that are the quantized layers")

    def quantized(self, name: str) -> bool:
        return name in self.targets

    def read(self, name: str, n: int, k: int) -> Found:
        if (want := self.targets[name]) == "w4a16":
            return Found(awq.read(self.reader, name, n, k, 1, self.dtype, self.hints.get(name, {})).weights)
        if n % TILE or k % TILE:
            raise ShapeError(f"{self.reader.where}: '{name}'", f"N = {n}, K = {k}", f"multiples of {TILE}")
        weights = self.read_w4a4(name, (n,), k)
        if weights.format.name != want:
            where = f"{self.reader.where}: quantization_config"
            raise ArtifactError(where, f"'{name}' is {want}", f"{weights.format.name}, as its tensors are")
        return Found(weights)
