"""One nunchaku W4A4 linear (int4 or fp4) as tensors of our op contract, and back.

    theirs  y = Q·quant(x / smooth [+ shift]) + up·(down·x) + bias,  fp4: Q scaled by wtscale · wcscales
    ours    y = Q·quant((x [+ shift]) · act_mul) + up·(down·x) + bias,  nvfp4: scaled by wscale2

The same arithmetic, so every tensor but `smooth` moves without rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from svdq_trt.base.errors import ArtifactError, RangeError, ShapeError
from svdq_trt.contract.formats import INT4, NVFP4, R_MAX, R_MULTIPLE
from svdq_trt.contract.weights import SvdqWeights
from svdq_trt.interop import fragments
from svdq_trt.interop.exact import difference, reciprocal, restore, same_bits
from svdq_trt.interop.fragments import STEP, padded
from svdq_trt.interop.reader import FLOAT, HALF, Reader, to_half

Exact = dict[str, Any]


class Keys(NamedTuple):
    """Names of the tensors that the two generations of nunchaku name differently."""

    smooth: str
    smooth_orig: str
    down: str
    up: str


OLD = Keys("smooth", "smooth_orig", "lora_down", "lora_up")  # the C++ engine's
NEW = Keys("smooth_factor", "smooth_factor_orig", "proj_down", "proj_up")  # the Python modules'


class Rows(NamedTuple):
    """Where the N rows of the stacked members lie in the file's padded ones."""

    total: int
    at: Tensor  # [N] row of the file

    @classmethod
    def of(cls, rows: Sequence[int], layout: str = "stacked") -> Rows:
        """Layouts: "stacked", padded at the end; "each", every member padded; "pairs", the halves interleaved."""
        if layout == "each":
            starts = [sum(padded(r) for r in rows[:i]) for i in range(len(rows))]
            at = torch.cat([s + torch.arange(r) for s, r in zip(starts, rows, strict=True)])
            return cls(sum(padded(r) for r in rows), at)
        n = sum(rows)
        if layout == "pairs":
            return cls(padded(2 * padded(n // 2, STEP)), torch.cat((torch.arange(0, n, 2), torch.arange(1, n, 2))))
        return cls(padded(n), torch.arange(n))


class Linear4(NamedTuple):
    """A quantized linear of a file.

    Attributes:
        weights: N rows, K padded to 64; its activation is not known here.
        exact: what the weights cannot hold of the file they came from, for the way back (see exact.py).
    """

    weights: SvdqWeights
    exact: Exact


class Written(NamedTuple):
    """A linear in nunchaku's format: its tensors, and what they cannot hold of ours."""

    tensors: dict[str, Tensor]
    exact: Exact


def read(reader: Reader, name: str, rows: Rows, k: int, dtype: torch.dtype, hints: Exact) -> Linear4:
    """The linear `name` with K input features, in the 16-bit `dtype`.

    Args:
        hints: `Written.exact`, of a file that this tool wrote.

    Raises:
        ArtifactError, ShapeError, RangeError: naming the tensor that does not fit.
    """
    where = f"{reader.where}: '{name}"
    keys = NEW if reader.has(f"{name}.{NEW.smooth}") else OLD
    kp, k64 = padded(k), padded(k, STEP)
    qweight = fragments.unpack_codes(reader.take(f"{name}.qweight", ("I8",), (rows.total, kp // 2)))
    _refuse_padding(f"{where}.qweight'", qweight, rows, -(-k // 2))
    half = reader.dtype(f"{name}.{keys.smooth}")
    exact: Exact = {}
    fmt = NVFP4 if reader.kind(f"{name}.wscales") == "F8_E4M3" else INT4
    if fmt is NVFP4:
        wscale = fragments.unpack_micro(
            reader.take(f"{name}.wscales", ("F8_E4M3",), (kp // 16, rows.total)).view(torch.int8)
        )
        if bool(((wscale & 0x7F) == 0x7F).any()):
            raise RangeError(f"{where}.wscales'", "NaN", "finite e4m3 scales")
        wscale2 = _second_scales(reader, name, rows, exact)
    else:
        stored = reader.take_finite(f"{name}.wscales", HALF, (kp // STEP, rows.total))
        wscale = to_half(f"{where}.wscales'", fragments.unpack_vectors(stored), dtype, scale=True)
        wscale2 = torch.ones(len(rows.at))
    smooth = fragments.unpack_vector(reader.take_finite(f"{name}.{keys.smooth}", HALF, (kp,)))[:k64].clone()
    act_mul = _multiplier(f"{where}.{keys.smooth}'", smooth, k, dtype)
    if _positive(known := restore(act_mul, hints.get("act_mul"))):
        act_mul = known
    if half == dtype:
        exact["smooth"] = difference(reciprocal(act_mul), smooth)
    if reader.has(f"{name}.{keys.smooth_orig}"):  # nothing computes with it: kept for the way back
        orig = fragments.unpack_vector(reader.take(f"{name}.{keys.smooth_orig}", HALF, (kp,)))[:k64]
        if orig.dtype == smooth.dtype:
            exact["smooth_orig"] = difference(smooth, orig)
    down, up = _low_rank(reader, name, keys, rows, kp, k)
    bias = torch.zeros(len(rows.at), dtype=dtype)
    if reader.has(f"{name}.bias"):
        bias = fragments.unpack_vector(reader.take_finite(f"{name}.bias", HALF, (rows.total,)))[rows.at]
    weights = SvdqWeights(
        qweight=qweight[rows.at, : k64 // 2],
        wscale=wscale[: k64 // STEP, rows.at],
        act_mul=act_mul,
        lora_down=to_half(f"{where}.{keys.down}'", down[:, :k64], dtype),
        lora_up=to_half(f"{where}.{keys.up}'", up[rows.at], dtype),
        bias=to_half(f"{where}.bias'", bias, dtype),
        wscale2=wscale2,
        format=fmt,
    )
    return Linear4(weights.contiguous(), {k: v for k, v in exact.items() if v})


def _refuse_padding(where: str, qweight: Tensor, rows: Rows, used: int) -> None:
    """Codes beyond the model's N and K must be 0: others would mean that the model has other sizes."""
    beyond = torch.ones(rows.total, dtype=torch.bool)
    beyond[rows.at] = False
    if bool(qweight[beyond].any()) or bool(qweight[:, used:].any()):
        raise ShapeError(where, "weights where this model has only padding", "a checkpoint of this model")


def _multiplier(where: str, smooth: Tensor, k: int, dtype: torch.dtype) -> Tensor:
    if not bool((smooth > 0).all()):
        raise RangeError(where, "a factor of 0 or below", "positive smoothing factors")
    act_mul = (1.0 / smooth.float()).to(dtype)
    act_mul[k:] = 1
    if not _positive(act_mul):
        raise RangeError(where, "factors whose reciprocal is no number", f"reciprocals that fit {dtype}")
    return act_mul


def _positive(values: Tensor) -> bool:
    return bool((values.isfinite() & (values > 0)).all())


def _second_scales(reader: Reader, name: str, rows: Rows, exact: Exact) -> Tensor:
    """The product wtscale · wcscales, [N] f32; either may be absent and is then 1."""
    scale = torch.ones(len(rows.at))
    if reader.has(f"{name}.wtscale"):
        stored = reader.take_finite(f"{name}.wtscale", FLOAT, (1,), ()).reshape(1)
        exact["wtscale"] = [reader.kind(f"{name}.wtscale"), float(stored)]
        scale = scale * stored.float()
    if reader.has(f"{name}.wcscales"):
        columns = reader.take_finite(f"{name}.wcscales", HALF, (rows.total,))
        exact["wcscales"] = reader.kind(f"{name}.wcscales")
        scale = scale * fragments.unpack_vector(columns)[rows.at].float()
    if not bool(scale.isfinite().all()):
        raise RangeError(f"{reader.where}: '{name}.wtscale'", "a product beyond float32", "finite scales")
    return scale


def _low_rank(reader: Reader, name: str, keys: Keys, rows: Rows, kp: int, k: int) -> tuple[Tensor, Tensor]:
    """The factors down [R, K padded] and up [N padded, R]; R = 0 where the file has none."""
    down_name, up_name = f"{name}.{keys.down}", f"{name}.{keys.up}"
    if not reader.has(down_name) and not reader.has(up_name):
        return torch.zeros(0, kp), torch.zeros(rows.total, 0)
    shape = reader.shape(down_name)
    rank = shape[1] if len(shape) == 2 else -1
    if rank < 0 or rank % R_MULTIPLE or rank > R_MAX:
        raise ShapeError(
            f"{reader.where}: '{down_name}'",
            f"shape {list(shape)}",
            f"[{kp}, R], R a multiple of {R_MULTIPLE} up to {R_MAX}",
        )
    down = fragments.unpack_down(reader.take_finite(down_name, HALF, (kp, rank)))
    up = fragments.unpack_up(reader.take_finite(up_name, HALF, (rows.total, rank)))
    if bool(down[:, k:].any()):
        raise ShapeError(
            f"{reader.where}: '{down_name}'", "weights where this model has only padding", "a checkpoint of this model"
        )
    return down, up


# ---- writing ---------------------------------------------------------------------------------------------------


def write(name: str, linear: Linear4, rows: Rows, keys: Keys, bias: bool) -> Written:
    """The tensors of the linear `name`.

    Args:
        linear: K % 64 == 0; its `exact` is used where it still agrees.
        bias: the linear has one; without, a bias that is all zeros is left out.

    Raises:
        ArtifactError: a format that nunchaku has not.
    """
    w, exact = linear.weights, linear.exact
    if w.format not in (INT4, NVFP4):
        raise ArtifactError(
            name, f"format {w.format.name}", "int4 or nvfp4", "Quantize with --format int4 or --format nvfp4."
        )
    half, k = w.act_mul.dtype, w.k
    kp = padded(k)
    smooth = reciprocal(w.act_mul)
    if same_bits(reciprocal(original := restore(smooth, exact.get("smooth"))), w.act_mul):
        smooth = original
    orig = restore(smooth, exact.get("smooth_orig"))
    out = {
        "qweight": fragments.pack_codes(_spread(w.qweight, rows, 0, 0, kp // 2)),
        keys.smooth: fragments.pack_vector(pad(smooth, (0, kp - k), value=1)),
        keys.smooth_orig: fragments.pack_vector(pad(orig, (0, kp - k), value=1)),
    }
    if w.format is INT4:
        out["wscales"] = fragments.pack_vectors(_spread(w.wscale.T, rows, 1, 1, kp // STEP).T)
    else:
        scales = w.wscale.transpose(0, 1)  # [N, K/64, 4]
        one = int(torch.ones(1).to(torch.float8_e4m3fn).view(torch.int8))
        full = _spread(scales.flatten(1), rows, one, one, kp // 16).unflatten(1, (kp // STEP, 4))
        out["wscales"] = fragments.pack_micro(full.transpose(0, 1)).view(torch.float8_e4m3fn)
        out |= _write_second_scales(w.wscale2, rows, half, exact)
    if bias or bool(w.bias.any()):
        out["bias"] = fragments.pack_vector(_spread(w.bias[:, None], rows, 1, 1, 1)[:, 0])
    if w.rank or keys is NEW:  # the Python modules have the parameters at rank 0, too
        out[keys.down] = fragments.pack_down(pad(w.lora_down, (0, kp - k)))
        out[keys.up] = fragments.pack_up(_spread(w.lora_up, rows, 0, 0, w.rank))
    lost = difference(reciprocal(smooth), w.act_mul)
    tensors = {f"{name}.{key}": tensor.contiguous() for key, tensor in out.items()}
    return Written(tensors, {"act_mul": lost} if lost else {})


def _spread(values: Tensor, rows: Rows, row_fill: int, column_fill: int, columns: int) -> Tensor:
    """[N, C] -> [rows.total, columns] with `row_fill` in the padding rows, `column_fill` beyond C."""
    full = torch.full((rows.total, columns), row_fill, dtype=values.dtype)
    full[rows.at] = pad(values, (0, columns - values.shape[1]), value=column_fill)
    return full


def _write_second_scales(wscale2: Tensor, rows: Rows, half: torch.dtype, exact: Exact) -> dict[str, Tensor]:
    """Write wtscale alone where one number serves all rows, else wcscales too, rounded to 16 bits if they must be."""
    if ("wtscale" in exact or "wcscales" in exact) and (out := _as_it_was(wscale2, rows, exact)) is not None:
        return out
    if bool((wscale2 == wscale2[0]).all()):
        return {} if wscale2[0] == 1 else {"wtscale": wscale2[:1].clone()}
    columns = wscale2.to(half)
    if torch.equal(columns.float(), wscale2):
        return {"wcscales": _pack_columns(columns, rows)}
    largest = wscale2.abs().max()
    return {"wtscale": largest.reshape(1), "wcscales": _pack_columns((wscale2 / largest).to(half), rows)}


def _pack_columns(columns: Tensor, rows: Rows) -> Tensor:
    return fragments.pack_vector(_spread(columns[:, None], rows, 1, 1, 1)[:, 0])


def _as_it_was(wscale2: Tensor, rows: Rows, exact: Exact) -> dict[str, Tensor] | None:
    """The wtscale and wcscales with the dtypes and values of the file; None where they no longer give wscale2."""
    dtypes = {"F16": torch.float16, "BF16": torch.bfloat16, "F32": torch.float32}
    try:
        kind, value = exact.get("wtscale") or ("F32", 1.0)
        whole = torch.tensor([float(value)]).to(dtypes[kind])
        columns = (wscale2 / whole.float()).to(dtypes[exact.get("wcscales") or "F32"])
    except (KeyError, TypeError, ValueError):
        return None
    if "wcscales" not in exact:
        columns = torch.ones_like(wscale2)
    if not torch.equal(whole.float() * columns.float(), wscale2):
        return None
    out = {"wtscale": whole} if "wtscale" in exact else {}
    return out | ({"wcscales": _pack_columns(columns, rows)} if "wcscales" in exact else {})


# ---- values ----------------------------------------------------------------------------------------------------


def shifted_bias(weights: SvdqWeights, shift: float) -> Tensor:
    """The bias, in its dtype, that makes up for `shift` added to the quantized branch's x: b - W_residual·shift."""
    bias = weights.bias
    return (bias.double() - weights.residual().double().sum(1) * shift).to(bias.dtype)
