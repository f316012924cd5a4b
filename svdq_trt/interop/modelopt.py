"""ModelOpt's NVFP4_SVD export (a diffusers folder) -> nodes and 16-bit tensors of one of our models.

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
from torch import Tensor, nn
from torch.nn.functional import pad

from svdq_trt.base.errors import ArtifactError, RangeError, ShapeError, UnsupportedError
from svdq_trt.checkpoint.config_check import compare_config
from svdq_trt.contract.formats import FP8_MAX, K_MULTIPLE, N_MULTIPLE, NVFP4, R_MAX, R_MULTIPLE, Activation
from svdq_trt.contract.weights import SvdqWeights
from svdq_trt.interop.container import header_object
from svdq_trt.interop.exact import same_bits
from svdq_trt.interop.reader import FLOAT, Reader, to_half
from svdq_trt.interop.result import Imported
from svdq_trt.models import LinearGroup, ModelSpec
from svdq_trt.quantize.lowrank import balance

_TOP = FP8_MAX / 4  # the largest calibrated group scale goes here: headroom above, 15 binades below
_F16_MUL_MAX = 2.0**15
_NO_NODE = "nvfp4 in the imported checkpoint, but kept in this model: dequantized"
_IN_16_BIT = "16 bit in the imported checkpoint"


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
    return _Import(reader, spec, rank).run()


def _check_quantization(reader: Reader, quantization: Any) -> int | None:
    """The algorithm; returns its rank where the file says one."""
    where = f"{reader.where}: quantization_config"
    if quantization is None:
        return None
    if not isinstance(quantization, dict):
        raise ArtifactError(where, f"a JSON {type(quantization).__name__}", "a JSON object")
    if (name := quantization.get("quant_algo")) != "NVFP4_SVD":
        raise UnsupportedError(where, f"quant_algo {name!r:.60}", "NVFP4_SVD")
    groups = quantization.get("config_groups")
    group = groups.get("group_0") if isinstance(groups, dict) else None
    rank = group.get("lora_rank") if isinstance(group, dict) else None
    weights = group.get("weights") if isinstance(group, dict) else None
    size = weights.get("group_size", 16) if isinstance(weights, dict) else 16
    if size != 16:
        raise UnsupportedError(where, f"group_size {size!r:.60}", "16")
    if rank is not None and not isinstance(rank, int):
        raise ArtifactError(where, f"lora_rank {rank!r:.60}", "an integer")
    return rank


class _Import:
    def __init__(self, reader: Reader, spec: ModelSpec, rank: int | None) -> None:
        self.reader, self.spec, self.rank, self.dtype = reader, spec, rank, spec.torch_dtype
        self.module = spec.build(device="meta")
        self.groups = spec.groups(self.module)
        self.left = {name: tuple(p.shape) for name, p in self.module.state_dict().items()}
        self.linears: dict[str, SvdqWeights] = {}
        self.out = Imported()

    def run(self) -> Imported:
        for name, module in self.module.named_modules():
            if self.reader.has(f"{name}.weight_scale"):
                if not isinstance(module, nn.Linear):
                    raise UnsupportedError(
                        f"{self.reader.where}: '{name}'", "a quantized layer that is no linear", "linears only"
                    )
                self.linears[name] = self._read(name, module.out_features, module.in_features)
        done = {member for group in self.groups for member in self._group(group)}
        for name in self.linears:
            if name not in done:
                self._dequantized(name)
            self.left.pop(f"{name}.weight", None)
            self.left.pop(f"{name}.bias", None)
        self.out.tensors |= self.reader.take_tables(self.spec, self.left)
        for name, shape in sorted(self.left.items()):
            self.out.tensors[name] = self.reader.take_half(name, shape, self.spec.weight_dtype(name))
        self.reader.refuse_leftovers(self.spec.name)
        members = {m for g in self.groups for m in g.members}
        self.out.kept |= dict.fromkeys(sorted(members - set(self.linears)), _IN_16_BIT)
        self.out.finish(self.spec, self.groups)
        return self.out

    def _group(self, group: LinearGroup) -> tuple[str, ...]:
        """Make the group's node, or one node a member where they share no smoothing. Returns the members done."""
        found = [self.linears[m] for m in group.members if m in self.linears]
        if any(not _fits(linear, group) for linear in found) or not found:
            return ()
        if len(found) == len(group.members) and all(_share(found[0], other) for other in found):
            linear = found[0] if len(found) == 1 else SvdqWeights.stack(found)
            rows = tuple(x.n for x in found)
            self.out.add_node(group, linear if group.columns is None else linear.columns(*group.columns), rows, False)
            return group.members
        if group.activation is not Activation.NONE:
            return ()
        alone = [m for m in group.members if m in self.linears]
        for member, linear in zip(alone, found, strict=True):
            self.out.add_node(LinearGroup(member, (member,)), linear, (linear.n,), False)
        return tuple(alone)

    def _dequantized(self, name: str) -> None:
        self.out.tensors[f"{name}.weight"] = self.linears[name].dequantize().to(self.dtype)
        if f"{name}.bias" in self.left:
            self.out.tensors[f"{name}.bias"] = self.linears[name].bias
        self.out.kept[name] = _NO_NODE

    def _read(self, name: str, n: int, k: int) -> SvdqWeights:
        reader, where = self.reader, f"{self.reader.where}: '{name}"
        if k % K_MULTIPLE:
            raise ShapeError(f"{where}.weight'", f"K = {k}", f"a multiple of {K_MULTIPLE}")
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
        return SvdqWeights(
            qweight=codes.contiguous(),
            wscale=scale.view(n, k // 64, 4).transpose(0, 1).contiguous(),
            act_mul=act_mul,
            lora_down=down,
            lora_up=up,
            bias=bias,
            wscale2=(whole / power).repeat(n),
            format=NVFP4,
        )

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
        up, down = balance(pad(up, (0, missing)), pad(down, (0, 0, 0, missing)))
        where = f"{self.reader.where}: '{name}'"
        return to_half(f"{where}, lora_a", down, self.dtype), to_half(f"{where}, lora_b", up, self.dtype)


def _fits(linear: SvdqWeights, group: LinearGroup) -> bool:
    columns = group.columns or (0, 0)
    return linear.n % N_MULTIPLE == 0 and not any(c % K_MULTIPLE for c in columns)


def _share(a: SvdqWeights, b: SvdqWeights) -> bool:
    return same_bits(a.act_mul, b.act_mul)
