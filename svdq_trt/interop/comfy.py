"""comfy-kitchen's layouts, as ComfyUI's files have them: `svdquant_w4a4` (int4) and `awq_w4a16` under diffusers' names.

    svdquant_w4a4   weight [N, K/2] int8 rows, or tiles [N/128, K/64, 32, 128] with scales and up factor in tiles of 128
                    rows; weight_scale, smooth_factor (divides), proj_down, proj_up; act_unsigned behind a GELU
    awq_w4a16       weight [N, K/2] int8, codes q in 0..15; w = (q - 8) · weight_scale + weight_zero(s)

A layer says what it is in a tensor `<layer>.comfy_quant`, JSON as bytes, or in the header's `_quantization_metadata`.
Tensors have comfy-kitchen's names (weight_smooth_factor, ...) or those of comfy-quants (smooth_factor, ...).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from svdq_trt.base.errors import ArtifactError, ShapeError, UnsupportedError
from svdq_trt.base.files import parse_json
from svdq_trt.contract import numerics
from svdq_trt.interop import awq, w4a4
from svdq_trt.interop.container import header_object
from svdq_trt.interop.layouts import kitchen
from svdq_trt.interop.linears import Found, Source, read_linears
from svdq_trt.interop.packing import STEP, TILE
from svdq_trt.interop.reader import FLOAT, Reader, to_half
from svdq_trt.interop.result import Imported
from svdq_trt.interop.w4a4 import Rows
from svdq_trt.models import ModelSpec

MARK = "comfy_quant"
METADATA = "_quantization_metadata"
W4A4, AWQ, TILED = "svdquant_w4a4", "awq_w4a16", "kitchen_tile_packed_w4a4"
_MARK_MAX = 1 << 16
#: value of `lowrank_branch_input_basis` -> whether proj_down reads x before smoothing
_BASES = {"raw": True, "post_smoothing": False}


def read_comfy(reader: Reader, spec: ModelSpec) -> Imported:
    """Everything in the file, checked against the model.

    Raises:
        ArtifactError, ShapeError, RangeError: naming what does not fit.
        UnsupportedError: a layer in another of ComfyUI's formats, by its name.
    """
    return read_linears(_File(reader, spec), spec)


class _File(Source):
    def __init__(self, reader: Reader, spec: ModelSpec) -> None:
        super().__init__(reader, spec)
        self.layers = _layers(reader)
        for name, said in self.layers.items():
            if said.get("format") not in (W4A4, AWQ):
                where = f"{reader.where}: '{name}'"
                raise UnsupportedError(where, f"format {said.get('format')!r:.60}", f"{W4A4} or {AWQ}")

    def quantized(self, name: str) -> bool:
        return name in self.layers

    def read(self, name: str, n: int, k: int) -> Found:
        said = self.layers[name]
        return self._awq(name, n, k, said) if said["format"] == AWQ else self._w4a4(name, n, k, said)

    def _w4a4(self, name: str, n: int, k: int, said: dict[str, Any]) -> Found:
        where = f"{self.reader.where}: '{name}'"
        tiled = len(self.reader.shape(f"{name}.weight")) == 4
        if said.get("layout", TILED) != TILED or (not tiled and "layout" in said):
            raise UnsupportedError(where, f"layout {said.get('layout')!r:.60}", f"rows, or {TILED} in tiles")
        basis = said.get("lowrank_branch_input_basis", "raw")
        unsigned = said.get("act_unsigned", False)
        if basis not in _BASES or not isinstance(unsigned, bool):
            raise ArtifactError(where, f"{MARK} {said!r:.80}", "what comfy-kitchen knows")
        if tiled and n % TILE:
            raise ShapeError(where, f"tiles of {TILE} rows, N = {n}", f"N a multiple of {TILE}")
        prefix = "weight_" if self.reader.has(f"{name}.weight_smooth_factor") else ""
        layout, rows = kitchen(prefix, tiled), Rows.of((n,), tile=1)
        weights = w4a4.read(self.reader, name, layout, rows, k, self.dtype, self.hints.get(name, {})).weights
        if not _BASES[basis]:
            down = weights.lora_down.float() * weights.act_mul.float()
            weights = replace(weights, lora_down=to_half(where, down, self.dtype))
        return Found(weights, unsigned)

    def _awq(self, name: str, n: int, k: int, said: dict[str, Any]) -> Found:
        reader, where = self.reader, f"{self.reader.where}: '{name}'"
        if said.get("group_size", STEP) != STEP or k % STEP:
            raise UnsupportedError(where, f"K = {k}, group_size {said.get('group_size')!r:.20}", f"groups of {STEP}")
        codes = numerics.unpack_nibbles(reader.take(f"{name}.weight", ("I8", "U8"), (n, k // 2)).view(torch.int8))
        scale = reader.take_finite(f"{name}.weight_scale", FLOAT, (k // STEP, n))
        zeros = next(z for z in ("weight_zeros", "weight_zero") if z == "weight_zero" or reader.has(f"{name}.{z}"))
        offset = reader.take_finite(f"{name}.{zeros}", FLOAT, (k // STEP, n)).float()
        none = torch.zeros(0, k, dtype=self.dtype), torch.zeros(n, 0, dtype=self.dtype)
        weights, _ = awq.node_of(where, codes, scale, offset, *none)
        if reader.has(f"{name}.bias"):
            bias = to_half(f"{where} bias", reader.take_finite(f"{name}.bias", FLOAT, (n,)), self.dtype)
            weights = replace(weights, bias=bias)
        return Found(weights.contiguous())


def _layers(reader: Reader) -> dict[str, dict[str, Any]]:
    """What each quantized layer says of itself; a tensor beside it has precedence over the header."""
    whole = header_object(reader, METADATA)
    layers = whole.get("layers", {})
    if not isinstance(layers, dict) or not all(isinstance(said, dict) for said in layers.values()):
        raise ArtifactError(f"{reader.where}: metadata '{METADATA}'", f"layers {layers!r:.60}", "an object of objects")
    found = dict(layers)
    for name in (name for name in reader.names if name.endswith(f".{MARK}")):
        where, shape = f"{reader.where}: '{name}'", reader.shape(name)
        if len(shape) != 1 or shape[0] > _MARK_MAX:
            raise ArtifactError(where, f"shape {list(shape)}", "the bytes of a JSON text")
        text = bytes(reader.take(name, ("U8",), shape).tolist())
        try:
            said = parse_json(text.decode())
        except ValueError:
            raise ArtifactError(where, "not valid JSON", "a JSON object") from None
        if not isinstance(said, dict):
            raise ArtifactError(where, f"a JSON {type(said).__name__}", "a JSON object")
        found[name.removesuffix(f".{MARK}")] = said
    return found
