"""One of our artifacts -> files for Nunchaku Lite of diffusers, and in comfy-kitchen's layout."""

from __future__ import annotations

import json
from typing import Any

import torch

from svdq_trt.artifact.svdq_file import Artifact
from svdq_trt.base.errors import UnsupportedError
from svdq_trt.contract import numerics
from svdq_trt.contract.formats import INT4, NVFP4, W4A16
from svdq_trt.interop import awq, comfy, w4a4
from svdq_trt.interop.container import HINTS
from svdq_trt.interop.layouts import LITE, kitchen
from svdq_trt.interop.packing import TILE
from svdq_trt.interop.result import Exported
from svdq_trt.interop.separate import Separate, separate
from svdq_trt.interop.w4a4 import Linear4, Rows
from svdq_trt.models import ModelSpec


def write_lite(loaded: Artifact, spec: ModelSpec) -> Exported:
    """Everything of an artifact for diffusers' NunchakuLiteQuantizer, and config.json's content.

    Raises:
        UnsupportedError: a format that it has not.
    """
    model = separate(loaded, spec, unsigned=False)
    fmt = _format_of(model, (INT4.name, NVFP4.name))
    out = Exported(notes=model.notes)
    for name in [n for n, w in model.linears.items() if w.format is not W4A16 and (w.n % TILE or w.k % TILE)]:
        out.notes.append(f"{name}: in 16 bit, as Nunchaku Lite has whole tiles of {TILE} alone.")
        model.to_dense(name, spec.torch_dtype)
    targets = {name: w.format is W4A16 for name, w in model.linears.items()}
    rank = max((w.rank for w in model.linears.values() if w.format is not W4A16), default=0)
    layers: dict[str, Any] = {}
    for name, weights in model.linears.items():
        biased = name in model.biased
        if targets[name]:
            written, same = awq.write(name, Linear4(weights, {}), 1, biased)
            if not same:
                out.notes.append(f"{name}: {_ROUNDED}")
        else:
            same_rank = Linear4(weights.with_rank(rank), {})
            written = w4a4.write(name, same_rank, LITE, Rows.of((weights.n,), tile=1), biased, tensor_scale=False)
            if weights.format is NVFP4:  # its module has that parameter, too; in f16 it would hold no tensor scale
                written.tensors[f"{name}.wtscale"] = torch.ones(1, dtype=spec.torch_dtype)
            if written.lost:
                out.notes.append(f"{name}: {written.lost}.")
        out.tensors |= written.tensors
        if written.exact:
            layers[name] = written.exact
    out.tensors |= model.dense
    out.metadata = _hints(layers, model) | {"format": "pt"}
    parts: dict[str, dict[str, Any]] = {
        "svdq_w4a4": {"precision": fmt, "group_size": 16 if fmt == NVFP4.name else 64, "rank": rank},
        "awq_w4a16": {"precision": "int4", "group_size": 64},
    }
    named = {"svdq_w4a4": [n for n in targets if not targets[n]], "awq_w4a16": [n for n in targets if targets[n]]}
    config = {"_class_name": spec.model_class().__name__, **spec.config}
    config["quantization_config"] = {
        "quant_method": "nunchaku_lite",
        "compute_dtype": spec.act_dtype,
        **{op: part | {"targets": named[op]} for op, part in parts.items() if named[op]},
    }
    out.files = {"config.json": json.dumps(config, indent=2) + "\n"}
    return out


_ROUNDED = "rounded again, without smoothing and low-rank branch, which 16-bit activations have not there."


def write_comfy(loaded: Artifact, spec: ModelSpec) -> Exported:
    """Everything of an artifact in comfy-kitchen's layouts, with names of tensors as comfy-quants has them.

    Raises:
        UnsupportedError: a format that it has not: SVDQuant is int4 there.
    """
    model = separate(loaded, spec, unsigned=True)
    _format_of(model, (INT4.name,))
    out = Exported(notes=model.notes)
    layers: dict[str, Any] = {}
    said: dict[str, dict[str, Any]] = {}
    for name, weights in model.linears.items():
        biased = name in model.biased
        if weights.format is W4A16:
            if not awq.is_plain(weights):
                weights = awq.round_again(weights)
                out.notes.append(f"{name}: {_ROUNDED}")
            said[name] = {"format": comfy.AWQ, "group_size": 64}
            tensors = {
                f"{name}.weight": numerics.pack_nibbles(awq.signed_codes(weights) + 8),
                f"{name}.weight_scale": weights.wscale,
                f"{name}.weight_zero": torch.zeros_like(weights.wscale),
            }
            if biased:
                tensors[f"{name}.bias"] = weights.bias
        else:
            tiled = weights.n % TILE == 0
            said[name] = {"format": comfy.W4A4} | ({"layout": comfy.TILED} if tiled else {})
            said[name] |= {"act_unsigned": True} if weights.act_unsigned else {}
            layout, rows = kitchen("", tiled), Rows.of((weights.n,), tile=1)
            written = w4a4.write(name, Linear4(weights, {}), layout, rows, biased)
            tensors = written.tensors
            if written.exact:
                layers[name] = written.exact
        mark = json.dumps(said[name]).encode()
        out.tensors |= tensors | {f"{name}.{comfy.MARK}": torch.tensor(list(mark), dtype=torch.uint8)}
    out.tensors |= model.dense
    out.metadata = _hints(layers, model)
    out.metadata[comfy.METADATA] = json.dumps({"format_version": "1.0", "layers": said})
    return out


def _hints(layers: dict[str, Any], model: Separate) -> dict[str, str]:
    return {HINTS: json.dumps({"version": 1, "layers": layers, "nodes": model.hints})}


def _format_of(model: Separate, known: tuple[str, ...]) -> str:
    """The one format of the linears with quantized activations."""
    found = sorted({w.format.name for w in model.linears.values() if w.format is not W4A16})
    if len(found) != 1 or found[0] not in known:
        got, want = f"format {' and '.join(found) or 'w4a16'}", " or ".join(known)
        raise UnsupportedError("the artifact", got, want, f"Quantize with --format {known[0]}.")
    return found[0]
