"""One nunchaku W4A16 ("AWQ") linear as a `w4a16` node, and back: adaLN's modulation.

    theirs  w = s · q + z,  q in 0..15, s and z per group of 64;  z = -7·s for the symmetric weights of SVDQuant
    ours    w = s · c,      c = q - 7 in -7..7 (or q - 8 in -8..7)

Their rows go [C, chunks] where the model has [chunks, C], and the bias of the chunks that scale (the second, and the
last but one) holds b + 1. Zero points that are not 7 or 8 steps are constant over a group: d = z + 8·s times the sum
of the group's inputs, which is a low-rank term of rank K/64 and goes there.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from svdq_trt.base.errors import RangeError, ShapeError
from svdq_trt.contract import numerics
from svdq_trt.contract.formats import R_MAX, R_MULTIPLE, W4A16
from svdq_trt.contract.weights import SvdqWeights
from svdq_trt.interop.exact import difference, restore, same_bits
from svdq_trt.interop.layouts import OLD
from svdq_trt.interop.packing import AWQ_ROWS, STEP, pack_awq, padded, unpack_awq
from svdq_trt.interop.reader import HALF, Reader, to_half
from svdq_trt.interop.w4a4 import Exact, Linear4, Written

GROUPS_PADDED = 16  # some writers round the number of groups up to this


def row_order(n: int, chunks: int) -> Tensor:
    """[N] row of the file of each row of the model."""
    return torch.arange(n).view(n // chunks, chunks).T.reshape(-1)


def scaling_rows(n: int, chunks: int) -> Tensor:
    """[N] bool, rows of the model whose bias holds b + 1."""
    which = torch.zeros(n, dtype=torch.bool)
    if chunks > 1:
        which.view(chunks, -1)[[1, chunks - 2]] = True
    return which


def read(reader: Reader, name: str, n: int, k: int, chunks: int, dtype: torch.dtype, hints: Exact) -> Linear4:
    """The linear `name` [N, K] as a w4a16 node with rows in the model's order.

    Args:
        chunks: of adaLN, whose rows are reordered; 1: the file has the model's own order and bias.
        hints: `Written.exact`, of a file that this tool wrote.

    Raises:
        ArtifactError, ShapeError, RangeError: naming the tensor that does not fit.
    """
    where = f"{reader.where}: '{name}"
    if k % STEP or n % (AWQ_ROWS * chunks):
        raise ShapeError(where + "'", f"N = {n}, K = {k}", f"K a multiple of {STEP}, N of {AWQ_ROWS * chunks}")
    at = row_order(n, chunks)
    codes = unpack_awq(reader.take(f"{name}.qweight", ("I32",), (n // AWQ_ROWS, k // 2)))[at]
    groups, half = k // STEP, reader.dtype(f"{name}.wscales")
    shapes = ((groups, n), (padded(groups, GROUPS_PADDED), n))
    scale = reader.take_finite(f"{name}.wscales", HALF, *shapes)[:groups, at]
    zero = reader.take_finite(f"{name}.wzeros", HALF, *shapes)[:groups, at]
    exact: Exact = {}
    down, up = _low_rank(reader, name, n, k, at, dtype)
    if len(down):
        exact["low_rank"] = True
    weights, point = node_of(f"{where}'", codes, scale, zero.float() + 8 * scale.float(), down, up)
    if point is not None and half == dtype:
        exact["wzeros"] = difference(_zeros(weights.wscale, point), zero.contiguous())
    if reader.has(f"{name}.bias"):
        raw = reader.take_finite(f"{name}.bias", HALF, (n,))[at]
        bias = to_half(f"{where}.bias'", _minus_one(raw, chunks), dtype)
        known = restore(bias, hints.get("bias"))
        if same_bits(_plus_one(known, chunks), raw):
            bias = known
        if raw.dtype == dtype:
            exact["bias"] = difference(_plus_one(bias, chunks), raw)
        weights = replace(weights, bias=bias)
    return Linear4(weights.contiguous(), {k: v for k, v in exact.items() if v})


def node_of(
    where: str, codes: Tensor, scale: Tensor, offset: Tensor, down: Tensor, up: Tensor
) -> tuple[SvdqWeights, int | None]:
    """A w4a16 node without bias, w = s · (q - 8) + offset + up · down, and the zero point of q, where it is one number.

    Args:
        codes: q, [N, K] uint8 in 0..15. scale: s, [K/64, N] of 16 bits. offset: [K/64, N] f32.
        down, up: [R, K] and [N, R] in the model's 16-bit dtype.

    Raises:
        RangeError: a scale or an offset that the dtype cannot hold, or too large a rank.
    """
    (n, k), dtype = codes.shape, down.dtype
    stored = to_half(f"{where} scales", scale, dtype, scale=True)
    point = _zero_point(codes, scale, offset)
    if point is None:
        steps = torch.eye(k // STEP, dtype=dtype).repeat_interleave(STEP, 1)
        down, up = torch.cat((down, steps)), torch.cat((up, to_half(f"{where} zeros", offset.T, dtype)), 1)
    rank = padded(len(down), R_MULTIPLE)
    if rank > R_MAX:
        raise RangeError(where, f"rank {len(down)} with its zero points", f"at most {R_MAX}")
    weights = SvdqWeights(
        qweight=numerics.pack_nibbles(codes.to(torch.int16) - (8 if point is None else point)),
        wscale=stored,
        act_mul=torch.ones(k, dtype=dtype),
        lora_down=down,
        lora_up=up,
        bias=torch.zeros(n, dtype=dtype),
        wscale2=torch.ones(n),
        format=W4A16,
    )
    return weights.with_rank(rank), point


def _zeros(scale: Tensor, point: int) -> Tensor:
    return (-point * scale.float()).to(scale.dtype)


def _plus_one(bias: Tensor, chunks: int) -> Tensor:
    return torch.where(scaling_rows(len(bias), chunks), bias.float() + 1, bias.float()).to(bias.dtype)


def _minus_one(bias: Tensor, chunks: int) -> Tensor:
    return torch.where(scaling_rows(len(bias), chunks), bias.float() - 1, bias.float()).to(bias.dtype)


def _zero_point(codes: Tensor, scale: Tensor, offset: Tensor) -> int | None:
    """7 or 8 where `offset` is 8 less that many steps up to a 16-bit rounding and codes then fit; else None."""
    ulp, scale = torch.finfo(scale.dtype).eps, scale.float()
    for point in (7, 8):
        fits = point == 8 or int(codes.max()) < 15
        if fits and bool(((offset - (8 - point) * scale).abs() <= ulp * point * scale.abs()).all()):
            return point
    return None


def _low_rank(reader: Reader, name: str, n: int, k: int, at: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """A low-rank branch, which the C++ engine's files may have here: down [R, K] and up [N, R], in plain order."""
    down_name, up_name = f"{name}.{OLD.down}", f"{name}.{OLD.up}"
    if not reader.has(down_name) and not reader.has(up_name):
        return torch.zeros(0, k, dtype=dtype), torch.zeros(n, 0, dtype=dtype)
    shape = reader.shape(down_name)
    if len(shape) != 2 or shape[0] > R_MAX:
        raise ShapeError(f"{reader.where}: '{down_name}'", f"shape {list(shape)}", f"[R, {k}], R up to {R_MAX}")
    down = reader.take_finite(down_name, HALF, (shape[0], k))
    up = reader.take_finite(up_name, HALF, (n, shape[0]))[at]
    return to_half(down_name, down, dtype), to_half(up_name, up, dtype)


def write(name: str, linear: Linear4, chunks: int, bias: bool) -> tuple[Written, bool]:
    """The tensors of the linear `name`, and whether its weight is the same.

    A node with smoothing, or with a low-rank branch, is dequantized and rounded again: nunchaku has neither here. Only
    its C++ engine takes such a branch, so one is written only where it came from such a file.
    """
    w, exact = linear.weights, linear.exact
    low_rank = exact.get("low_rank") is True
    if not (lossless := is_plain(w, low_rank)):
        w, exact = round_again(w), {}
    n, k = w.n, w.k
    codes = signed_codes(w)
    point = 8 if int(codes.min()) == -8 else 7
    back = torch.empty_like(at := row_order(n, chunks))
    back[at] = torch.arange(n)
    zeros = restore(_zeros(w.wscale, point), exact.get("wzeros"))
    raw = _plus_one(w.bias, chunks)
    known = restore(raw, exact.get("bias"))
    if same_bits(_minus_one(known, chunks), w.bias):
        raw = known
    lost = difference(_minus_one(raw, chunks), w.bias)
    out = {
        "qweight": pack_awq((codes + point).to(torch.uint8)[back]),
        "wscales": w.wscale[:, back],
        "wzeros": zeros[:, back],
    }
    if bias or bool(w.bias.any()):
        out["bias"] = raw[back]
    if low_rank and bool(w.lora_up.any()):
        out |= {OLD.down: w.lora_down, OLD.up: w.lora_up[back]}
    assert k % STEP == 0
    tensors = {f"{name}.{key}": tensor.contiguous() for key, tensor in out.items()}
    return Written(tensors, {"bias": lost} if lost else {}), lossless


def is_plain(weights: SvdqWeights, low_rank: bool = False) -> bool:
    """Whether codes and scales are all of the weight: no smoothing, and no low-rank branch unless it is allowed."""
    return bool((weights.act_mul == 1).all()) and (low_rank or not bool(weights.lora_up.any()))


def signed_codes(weights: SvdqWeights) -> Tensor:
    """[N, K] int16: codes in -8..7."""
    return (numerics.unpack_nibbles(weights.qweight) ^ 8).to(torch.int16) - 8


def round_again(weights: SvdqWeights) -> SvdqWeights:
    """The whole weight in codes: neither smoothing nor a low-rank branch is left."""
    new = numerics.quantize_weight(weights.dequantize(), W4A16, weights.act_mul.dtype)
    act_mul = torch.ones_like(weights.act_mul)
    return replace(
        weights.with_rank(0), qweight=new.qweight, wscale=new.wscale, wscale2=new.wscale2, act_mul=act_mul, format=W4A16
    )
