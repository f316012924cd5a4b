"""ModelOpt's NVFP4_SVD export (a diffusers folder) -> linears of one of our models; see linears.py.

    weight                U8   [N, K/2]   e2m1 codes, low nibble = even k
    weight_scale          e4m3 [N, K/16]
    weight_scale_2        f32  scalar
    pre_quant_scale       [K]             x̂ = x · pre_quant_scale; layers left out of SVDQuant have none
    svdquant_lora_a, _b   [R, K], [N, R]  read x̂
    input_scale           f32  scalar     calibrated absmax / (6 · 448): their activations have a tensor scale

    theirs  y = Q·quant(x̂) + b·(a·x̂) + bias

Codes and scales move as they are; a·diag(pre_quant_scale), which reads raw x, is rounded to 16 bits. Our activations
have e4m3 group scales alone, so a power of two that centres them goes into act_mul and out of wscale2.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from svdq_trt.base.errors import ArtifactError, RangeError, ShapeError, UnsupportedError
from svdq_trt.checkpoint.config_check import compare_config
from svdq_trt.contract.formats import FP8_MAX, K_MULTIPLE, NVFP4, R_MAX, R_MULTIPLE
from svdq_trt.contract.weights import SvdqWeights
from svdq_trt.interop.container import header_object
from svdq_trt.interop.linears import Found, Source, read_linears
from svdq_trt.interop.reader import FLOAT, Reader, to_half
from svdq_trt.interop.result import Imported
from svdq_trt.models import ModelSpec

_TOP = FP8_MAX / 4  # the largest calibrated group scale goes here: headroom above, 15 binades below
_F16_MUL_MAX = 2.0**15
_ALGORITHMS = ("NVFP4_SVD", "NVFP4")  # the second of layers that SVDQuant skips


def read_modelopt(reader: Reader, spec: ModelSpec) -> Imported:
    """Everything in the export, checked against the model.

    Raises:
        ArtifactError, ShapeError, RangeError: naming what does not fit. UnsupportedError: another algorithm.
    """
    for key in ("quantization_config", "_quantization_metadata"):
        if key in reader.metadata:  # written when scales may have been padded or swizzled, which cannot be told apart
            raise UnsupportedError(
                f"{reader.where}: metadata '{key}'",
                "an export prepared for another runtime",
                "the plain diffusers export",
                "Export again without those options.",
            )
    config = header_object(reader, "config")
    quantization = config.pop("quantization_config", None)
    if config:
        compare_config(spec, config, f"{reader.where}: config")
    rank = _check_quantization(reader, quantization)
    return read_linears(_Export(reader, spec, rank), spec)


def _check_quantization(reader: Reader, quantization: Any) -> int | None:
    """The algorithm; returns its rank where the file says one."""
    where = f"{reader.where}: quantization_config"
    if quantization is None:
        return None
    if not isinstance(quantization, dict):
        raise ArtifactError(where, f"a JSON {type(quantization).__name__}", "a JSON object")
    groups = quantization.get("config_groups", {})
    layers = quantization.get("quantized_layers", {})
    for key, value in (("config_groups", groups), ("quantized_layers", layers)):
        if not isinstance(value, dict) or not all(isinstance(v, dict) for v in value.values()):
            raise ArtifactError(where, f"{key} {value!r:.60}", "a JSON object of objects")
    algorithms = {quantization.get("quant_algo")}
    if algorithms == {"MIXED_PRECISION"}:
        algorithms = {layer.get("quant_algo") for layer in layers.values()}
    if odd := sorted(str(name) for name in algorithms if name not in _ALGORITHMS):
        raise UnsupportedError(where, f"quant_algo {odd[0]!r:.60}", " or ".join(_ALGORITHMS))
    for size in _group_sizes(groups, layers):
        if size != 16:
            raise UnsupportedError(where, f"group_size {size!r:.60}", "16")
    ranks = [group["lora_rank"] for group in groups.values() if "lora_rank" in group]
    if not all(type(rank) is int for rank in ranks):
        raise ArtifactError(where, f"lora_rank {ranks[0]!r:.60}", "an integer")
    return ranks[0] if len(set(ranks)) == 1 else None


def _group_sizes(groups: dict[str, Any], layers: dict[str, Any]) -> set[Any]:
    weights = [group["weights"] for group in groups.values() if isinstance(group.get("weights"), dict)]
    return {size for part in (*weights, *layers.values()) if isinstance(size := part.get("group_size", 16), int | str)}


class _Export(Source):
    """The linears of an export; `rank` is the algorithm's, where the file says one."""

    def __init__(self, reader: Reader, spec: ModelSpec, rank: int | None) -> None:
        super().__init__(reader, spec)
        self.rank = rank

    def quantized(self, name: str) -> bool:
        return self.reader.has(f"{name}.weight_scale")

    def read(self, name: str, n: int, k: int) -> Found:
        reader, where = self.reader, f"{self.reader.where}: '{name}"
        if k % 16:
            raise ShapeError(f"{where}.weight'", f"K = {k}", "a multiple of 16")
        codes = reader.take(f"{name}.weight", ("U8",), (n, k // 2)).view(torch.int8)
        scale = reader.take(f"{name}.weight_scale", ("F8_E4M3",), (n, k // 16)).view(torch.int8)
        if bool(((scale & 0x7F) == 0x7F).any()):
            raise RangeError(f"{where}.weight_scale'", "NaN", "finite e4m3 scales")
        whole = reader.take_finite(f"{name}.weight_scale_2", ("F32",), (), (1,)).reshape(())
        before = torch.ones(k)
        if reader.has(f"{name}.pre_quant_scale"):
            before = reader.take_finite(f"{name}.pre_quant_scale", FLOAT, (k,), (1, k)).reshape(k).float()
        if not bool((before > 0).all()):
            raise RangeError(f"{where}.pre_quant_scale'", "a factor of 0 or below", "positive factors")
        power = self._centre(name, before)
        act_mul = to_half(f"{where}.pre_quant_scale'", before * power, self.dtype, scale=True)
        down, up = self._low_rank(name, n, k, before)
        bias = torch.zeros(n, dtype=self.dtype)
        if reader.has(f"{name}.bias"):
            bias = to_half(f"{where}.bias'", reader.take_finite(f"{name}.bias", FLOAT, (n,)), self.dtype)
        beyond = -k % K_MULTIPLE  # only of layers that no model of ours quantizes
        weights = SvdqWeights(
            qweight=pad(codes, (0, beyond // 2)),
            wscale=pad(scale, (0, beyond // 16)).unflatten(1, (-1, 4)).transpose(0, 1),
            act_mul=pad(act_mul, (0, beyond), value=1),
            lora_down=pad(down, (0, beyond)),
            lora_up=up,
            bias=bias,
            wscale2=(whole / power).repeat(n),
            format=NVFP4,
        )
        return Found(weights.contiguous())

    def _centre(self, name: str, before: Tensor) -> float:
        """The power of two that brings the largest calibrated group scale to _TOP; 1 where nothing was calibrated."""
        if not self.reader.has(f"{name}.input_scale"):
            return 1.0
        scale = float(self.reader.take_finite(f"{name}.input_scale", ("F32",), (), (1,)))
        if scale <= 0:
            raise RangeError(f"{self.reader.where}: '{name}.input_scale'", f"{scale}", "a positive scale")
        power = math.floor(math.log2(_TOP / (scale * FP8_MAX)))
        if self.dtype == torch.float16:
            power = min(power, math.floor(math.log2(_F16_MUL_MAX / float(before.max()))))
        return 2.0 ** max(-60, min(60, power))

    def _low_rank(self, name: str, n: int, k: int, before: Tensor) -> tuple[Tensor, Tensor]:
        a, b = f"{name}.svdquant_lora_a", f"{name}.svdquant_lora_b"
        if not self.reader.has(a) and not self.reader.has(b):
            return torch.zeros(0, k, dtype=self.dtype), torch.zeros(n, 0, dtype=self.dtype)
        shape = self.reader.shape(a)
        rank = shape[0] if len(shape) == 2 else -1
        if not 0 <= rank <= R_MAX or (self.rank is not None and rank != self.rank):
            want = f"[{'R' if self.rank is None else self.rank}, {k}]"
            raise ShapeError(f"{self.reader.where}: '{a}'", f"shape {list(shape)}", want)
        down = self.reader.take_finite(a, FLOAT, (rank, k)).float() * before
        up = self.reader.take_finite(b, FLOAT, (n, rank)).float()
        missing = -rank % R_MULTIPLE
        up, down = _level(pad(up, (0, missing)), pad(down, (0, 0, 0, missing)))
        where = f"{self.reader.where}: '{name}'"
        return to_half(f"{where}, lora_a", down, self.dtype), to_half(f"{where}, lora_b", up, self.dtype)


def _level(up: Tensor, down: Tensor) -> tuple[Tensor, Tensor]:
    """Powers of two from rows of down [R, K] to columns of up [N, R], so that down's are about 1 and f16 holds them.

    Whatever up is: q, k and v that share lora_a then still share it.
    """
    factor = torch.exp2(torch.floor(torch.log2(down.abs().amax(1).clamp_min(2.0**-100))))
    return up * factor, down / factor[:, None]
