"""One of our artifacts -> files for Nunchaku Lite of diffusers, and in comfy-kitchen's layout."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import torch

from svdq_trt.artifact.svdq_file import Artifact
from svdq_trt.base.errors import UnsupportedError
from svdq_trt.contract import numerics
from svdq_trt.contract.formats import FORMATS, INT4, NVFP4, W4A16
from svdq_trt.contract.weights import SvdqWeights
from svdq_trt.interop import awq, comfy, w4a4
from svdq_trt.interop.container import HINTS
from svdq_trt.interop.layouts import LITE, kitchen
from svdq_trt.interop.packing import TILE
from svdq_trt.interop.result import Exported
from svdq_trt.interop.separate import Separate, separate
from svdq_trt.interop.w4a4 import Linear4, Rows, Written
from svdq_trt.models import ModelSpec

_ROUNDED = "rounded again, without smoothing and low-rank branch, which layers of 16-bit activations have not there"


def write_lite(loaded: Artifact, spec: ModelSpec) -> Exported:
    """Everything of an artifact for diffusers' NunchakuLiteQuantizer, and config.json's content.

    Raises:
        UnsupportedError: a format that it has not.
    """
    model = separate(loaded, spec, unsigned=False)
    fmt = _format_of(model, (INT4.name, NVFP4.name))
    for name in [n for n, w in model.linears.items() if w.format is not W4A16 and (w.n % TILE or w.k % TILE)]:
        model.notes.append(f"{name}: in 16 bit, as Nunchaku Lite has whole tiles of {TILE} alone.")
        model.to_dense(name, spec.torch_dtype)
    rank = max((w.rank for w in model.linears.values() if w.format is not W4A16), default=0)
    linears = {n: _lite_linear(n, w, rank, n in model.biased) for n, w in model.linears.items()}
    out = _gathered(model, linears)
    out.metadata["format"] = "pt"
    config = {"_class_name": spec.model_class().__name__, **spec.config}
    config["quantization_config"] = {
        "quant_method": "nunchaku_lite",
        "compute_dtype": spec.act_dtype,
        **_lite_targets(model.linears, fmt, rank),
    }
    out.files = {"config.json": json.dumps(config, indent=2) + "\n"}
    return out


def _lite_linear(name: str, weights: SvdqWeights, rank: int, biased: bool) -> Written:
    if weights.format is W4A16:
        written, same = awq.write(name, Linear4(weights, {}), 1, biased)
        return written._replace(lost="" if same else _ROUNDED)
    linear, rows = Linear4(weights.with_rank(rank), {}), Rows.of((weights.n,), tile=LITE.tile)
    written = w4a4.write(name, linear, LITE, rows, biased, tensor_scale=False)
    if weights.format is NVFP4:  # its module has that parameter, too; in f16 it would hold no tensor scale
        written.tensors[f"{name}.wtscale"] = torch.ones(1, dtype=weights.act_mul.dtype)
    return written


def _lite_targets(linears: Mapping[str, SvdqWeights], fmt: str, rank: int) -> dict[str, dict[str, Any]]:
    """The parts of its quantization_config that name linears; one without any is left out."""
    names: dict[bool, list[str]] = {True: [], False: []}
    for name, weights in linears.items():
        names[weights.format is W4A16].append(name)
    group = FORMATS[fmt].weight_group
    parts = {
        "svdq_w4a4": {"precision": fmt, "group_size": group, "rank": rank, "targets": names[False]},
        "awq_w4a16": {"precision": "int4", "group_size": W4A16.weight_group, "targets": names[True]},
    }
    return {op: part for op, part in parts.items() if part["targets"]}


def write_comfy(loaded: Artifact, spec: ModelSpec) -> Exported:
    """Everything of an artifact in comfy-kitchen's layouts, with names of tensors as comfy-quants has them.

    Raises:
        UnsupportedError: a format that it has not: SVDQuant is int4 there.
    """
    model = separate(loaded, spec, unsigned=True)
    _format_of(model, (INT4.name,))
    said = {name: _said(weights) for name, weights in model.linears.items()}
    out = _gathered(model, {n: _kitchen_linear(n, w, n in model.biased) for n, w in model.linears.items()})
    for name, words in said.items():
        out.tensors[f"{name}.{comfy.MARK}"] = torch.tensor(list(json.dumps(words).encode()), dtype=torch.uint8)
    out.metadata[comfy.METADATA] = json.dumps({"format_version": "1.0", "layers": said})
    return out


def _said(weights: SvdqWeights) -> dict[str, Any]:
    """What a layer says of itself there."""
    if weights.format is W4A16:
        return {"format": comfy.AWQ, "group_size": W4A16.weight_group}
    layout = {"layout": comfy.TILED} if weights.n % TILE == 0 else {}
    return {"format": comfy.W4A4} | layout | ({"act_unsigned": True} if weights.act_unsigned else {})


def _kitchen_linear(name: str, weights: SvdqWeights, biased: bool) -> Written:
    if weights.format is not W4A16:
        rows = Rows.of((weights.n,), tile=1)
        return w4a4.write(name, Linear4(weights, {}), kitchen("", weights.n % TILE == 0), rows, biased)
    plain = weights if (same := awq.is_plain(weights)) else awq.round_again(weights)
    tensors = {
        "weight": numerics.pack_nibbles(awq.signed_codes(plain) + 8),
        "weight_scale": plain.wscale,
        "weight_zero": torch.zeros_like(plain.wscale),
    } | ({"bias": plain.bias} if biased else {})
    return Written({f"{name}.{leaf}": t for leaf, t in tensors.items()}, {}, "" if same else _ROUNDED)


def _gathered(model: Separate, linears: Mapping[str, Written]) -> Exported:
    """All tensors, with what they cannot hold of ours in the metadata."""
    out = Exported(dict(model.dense), notes=list(model.notes))
    for name, written in linears.items():
        out.tensors |= written.tensors
        if written.lost:
            out.notes.append(f"{name}: {written.lost}.")
    exact = {name: written.exact for name, written in linears.items() if written.exact}
    out.metadata[HINTS] = json.dumps({"version": 1, "layers": exact, "nodes": model.hints})
    return out


def _format_of(model: Separate, known: tuple[str, ...]) -> str:
    """The one format of the linears with quantized activations."""
    found = sorted({w.format.name for w in model.linears.values() if w.format is not W4A16})
    if len(found) != 1 or found[0] not in known:
        got, want = f"format {' and '.join(found) or 'w4a16'}", " or ".join(known)
        raise UnsupportedError("the artifact", got, want, f"Quantize with --format {known[0]}.")
    return found[0]
