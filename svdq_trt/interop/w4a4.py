"""One W4A4 linear (int4 or nvfp4) of SVDQuant's makers as tensors of our op contract, and back.

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
from svdq_trt.contract.numerics import E4M3
from svdq_trt.contract.weights import SvdqWeights
from svdq_trt.interop import second_scales
from svdq_trt.interop.exact import difference, reciprocal, restore, same_bits
from svdq_trt.interop.layouts import NEW, OLD, Layout
from svdq_trt.interop.packing import FRAGMENTS, STEP, TILE, Order, padded
from svdq_trt.interop.reader import FLOAT, HALF, Reader, to_half

Exact = dict[str, Any]


class Rows(NamedTuple):
    """Where the N rows of the stacked members lie in the file's padded ones."""

    total: int
    at: Tensor  # [N] row of the file

    @classmethod
    def of(cls, rows: Sequence[int], order: str = "stacked", tile: int = TILE) -> Rows:
        """Orders: "stacked", padded at the end; "each", every member padded; "pairs", the halves interleaved."""
        if order == "each":
            starts = [sum(padded(r, tile) for r in rows[:i]) for i in range(len(rows))]
            at = torch.cat([s + torch.arange(r) for s, r in zip(starts, rows, strict=True)])
            return cls(sum(padded(r, tile) for r in rows), at)
        n = sum(rows)
        if order == "pairs":
            at = torch.cat((torch.arange(0, n, 2), torch.arange(1, n, 2)))
            return cls(padded(2 * padded(n // 2, STEP), tile), at)
        return cls(padded(n, tile), torch.arange(n))


class Linear4(NamedTuple):
    """A quantized linear of a file.

    Attributes:
        weights: N rows, K padded to 64; its activation is not known here.
        exact: what the weights cannot hold of the file they came from, for the way back (see exact.py).
    """

    weights: SvdqWeights
    exact: Exact


class Written(NamedTuple):
    """A linear in another tool's format.

    Attributes:
        tensors: by full name. exact: what they cannot hold of ours, for the way back.
        lost: what no way back restores, in words; "" where nothing is.
    """

    tensors: dict[str, Tensor]
    exact: Exact
    lost: str = ""


def layout_of(reader: Reader, name: str) -> Layout:
    """Which of nunchaku's two generations the linear `name` is named after."""
    return NEW if reader.has(f"{name}.{NEW.smooth}") else OLD


def read(reader: Reader, name: str, layout: Layout, rows: Rows, k: int, dtype: torch.dtype, hints: Exact) -> Linear4:
    """The linear `name` with K input features, in the 16-bit `dtype`.

    Args:
        hints: `Written.exact`, of a file that this tool wrote.

    Raises:
        ArtifactError, ShapeError, RangeError: naming the tensor that does not fit.
    """
    return _Reading(reader, name, layout, rows, k, dtype).run(hints)


class _Reading:
    """One linear being read; `exact` gathers what its weights cannot hold of it."""

    def __init__(self, reader: Reader, name: str, layout: Layout, rows: Rows, k: int, dtype: torch.dtype) -> None:
        self.reader, self.name, self.layout, self.rows, self.k, self.dtype = reader, name, layout, rows, k, dtype
        self.kp, self.k64 = padded(k, max(layout.tile, STEP)), padded(k, STEP)
        self.exact: Exact = {}

    def run(self, hints: Exact) -> Linear4:
        layout, rows, k64 = self.layout, self.rows, self.k64
        qweight = self._take(layout.codes, ("I8",), layout.packing.codes, (rows.total, self.kp // 2))
        _refuse_padding(self._where(layout.codes), qweight, rows, -(-self.k // 2))
        fmt = NVFP4 if self.reader.kind(f"{self.name}.{layout.scales}") == "F8_E4M3" else INT4
        wscale, wscale2 = self._micro_scales(hints) if fmt is NVFP4 else self._group_scales()
        act_mul = self._act_mul(hints)
        down, up = self._low_rank()
        bias = torch.zeros(len(rows.at), dtype=self.dtype)
        if self.reader.has(f"{self.name}.bias"):
            bias = self._take("bias", layout.floats, layout.packing.channels, (rows.total,))[rows.at]
        weights = SvdqWeights(
            qweight=qweight[rows.at, : k64 // 2],
            wscale=wscale[: k64 // STEP, rows.at],
            act_mul=act_mul,
            lora_down=to_half(self._where(layout.down), down[:, :k64], self.dtype),
            lora_up=to_half(self._where(layout.up), up[rows.at], self.dtype),
            bias=to_half(self._where("bias"), bias, self.dtype),
            wscale2=wscale2,
            format=fmt,
        )
        weights = weights.with_rank(padded(weights.rank, R_MULTIPLE)).contiguous()
        return Linear4(weights, {k: v for k, v in self.exact.items() if v})

    def _where(self, leaf: str) -> str:
        return f"{self.reader.where}: '{self.name}.{leaf}'"

    def _take(self, leaf: str, kinds: Sequence[str], order: Order, shape: tuple[int, ...]) -> Tensor:
        """A tensor of the file as the logical one of `shape`; NaN and Inf are refused."""
        stored = self.reader.take_finite(f"{self.name}.{leaf}", kinds, tuple(order.stored(shape)))
        return order.unpack(stored, shape)

    def _group_scales(self) -> tuple[Tensor, Tensor]:
        """Int4: scales [K/64, N], and ones [N]."""
        layout, shape = self.layout, (self.kp // STEP, self.rows.total)
        stored = self._take(layout.scales, layout.floats, layout.packing.scales, shape)
        return to_half(self._where(layout.scales), stored, self.dtype, scale=True), torch.ones(len(self.rows.at))

    def _micro_scales(self, hints: Exact) -> tuple[Tensor, Tensor]:
        """Nvfp4: e4m3 bytes [K/64, N, 4], and the product wtscale · wcscales [N] f32; absent ones are 1."""
        reader, name, rows = self.reader, self.name, self.rows
        shape = (self.kp // STEP, rows.total, 4)
        order = self.layout.packing.micro
        bytes_ = reader.take(f"{name}.{self.layout.scales}", ("F8_E4M3",), tuple(order.stored(shape))).view(torch.int8)
        if bool(((bytes_ & 0x7F) == 0x7F).any()):
            raise RangeError(self._where(self.layout.scales), "NaN", "finite e4m3 scales")
        wscale, scale = order.unpack(bytes_, shape), torch.ones(rows.total)
        if reader.has(f"{name}.wtscale"):
            whole = reader.take_finite(f"{name}.wtscale", FLOAT, (1,), ()).reshape(1)
            self.exact["wtscale"] = [reader.kind(f"{name}.wtscale"), float(whole)]
            scale = scale * whole.float()
        if reader.has(f"{name}.wcscales"):
            columns = self._take("wcscales", HALF, self.layout.packing.channels, (rows.total,))
            self.exact["wcscales"] = reader.kind(f"{name}.wcscales")
            scale = scale * columns.float()
        scale = scale[rows.at]
        if not bool(scale.isfinite().all()):
            raise RangeError(self._where("wtscale"), "a product beyond float32", "finite scales")
        return second_scales.restore(wscale, rows.at, scale, hints.get("tensor_scale"))

    def _act_mul(self, hints: Exact) -> Tensor:
        """[K padded to 64] the reciprocal of the smoothing."""
        layout, k64 = self.layout, self.k64
        stored = self._take(layout.smooth, layout.floats, layout.packing.channels, (self.kp,))
        smooth = stored[:k64].clone()
        act_mul = _multiplier(self._where(layout.smooth), smooth, self.k, self.dtype)
        if _positive(known := restore(act_mul, hints.get("act_mul"))):
            act_mul = known
        if smooth.dtype == self.dtype:
            self.exact["smooth"] = difference(reciprocal(act_mul), smooth)
        if layout.smooth_orig and self.reader.has(f"{self.name}.{layout.smooth_orig}"):  # kept for the way back
            stored = self.reader.take(f"{self.name}.{layout.smooth_orig}", HALF, (self.kp,))
            orig = layout.packing.channels.unpack(stored, (self.kp,))[:k64]
            if orig.dtype == smooth.dtype:
                self.exact["smooth_orig"] = difference(smooth, orig)
        return act_mul

    def _low_rank(self) -> tuple[Tensor, Tensor]:
        """The factors down [R, K padded] and up [N padded, R]; R = 0 where the file has none."""
        layout, kp, n = self.layout, self.kp, self.rows.total
        down_name, up_name = f"{self.name}.{layout.down}", f"{self.name}.{layout.up}"
        if not self.reader.has(down_name) and not self.reader.has(up_name):
            return torch.zeros(0, kp), torch.zeros(n, 0)
        shape = self.reader.shape(down_name)
        rank, step = (shape[1] if len(shape) == 2 else -1), R_MULTIPLE if layout.packing is FRAGMENTS else 1
        if rank < 0 or rank % step or rank > R_MAX:
            want = f"[{kp}, R], R {'a multiple of ' + str(step) + ' ' if step > 1 else ''}up to {R_MAX}"
            raise ShapeError(self._where(layout.down), f"shape {list(shape)}", want)
        down = self._take(layout.down, layout.floats, layout.packing.down, (rank, kp))
        up = self._take(layout.up, layout.floats, layout.packing.up, (n, rank))
        if bool(down[:, self.k :].any()):
            raise ShapeError(self._where(layout.down), _IN_PADDING, "a checkpoint of this model")
        return down, up


_IN_PADDING = "weights where this model has only padding"


def _refuse_padding(where: str, qweight: Tensor, rows: Rows, used: int) -> None:
    """Codes beyond the model's N and K must be 0: others would mean that the model has other sizes."""
    beyond = torch.ones(rows.total, dtype=torch.bool)
    beyond[rows.at] = False
    if bool(qweight[beyond].any()) or bool(qweight[:, used:].any()):
        raise ShapeError(where, _IN_PADDING, "a checkpoint of this model")


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


# ---- writing ---------------------------------------------------------------------------------------------------


def write(name: str, linear: Linear4, layout: Layout, rows: Rows, bias: bool, tensor_scale: bool = True) -> Written:
    """The tensors of the linear `name`.

    Args:
        linear: K % 64 == 0; its `exact` is used where it still agrees.
        bias: the linear has one; without, a bias that is all zeros is left out.
        tensor_scale: see `second_scales.write`.

    Raises:
        ArtifactError: a format that no maker of these has.
    """
    w, exact, packing = linear.weights, linear.exact, layout.packing
    if w.format not in (INT4, NVFP4):
        raise ArtifactError(
            name, f"format {w.format.name}", "int4 or nvfp4", "Quantize with --format int4 or --format nvfp4."
        )
    k, kp = w.k, padded(w.k, max(layout.tile, STEP))
    smooth = reciprocal(w.act_mul)
    if same_bits(reciprocal(original := restore(smooth, exact.get("smooth"))), w.act_mul):
        smooth = original
    out = {
        layout.codes: packing.codes.pack(_spread(w.qweight, rows, 0, 0, kp // 2)),
        layout.smooth: packing.channels.pack(pad(smooth, (0, kp - k), value=1)),
        layout.down: packing.down.pack(pad(w.lora_down, (0, kp - k))),
        layout.up: packing.up.pack(_spread(w.lora_up, rows, 0, 0, w.rank)),
    }
    if layout.smooth_orig:
        orig = restore(smooth, exact.get("smooth_orig"))
        out[layout.smooth_orig] = packing.channels.pack(pad(orig, (0, kp - k), value=1))
    scales = _written_scales(w, layout, rows, kp, tensor_scale, exact)
    out |= scales.tensors
    if bias or bool(w.bias.any()):
        out["bias"] = packing.channels.pack(_spread(w.bias[:, None], rows, 1, 1, 1)[:, 0])
    unheld = difference(reciprocal(smooth), w.act_mul)
    hints = scales.exact | ({"act_mul": unheld} if unheld else {})
    return Written({f"{name}.{key}": tensor.contiguous() for key, tensor in out.items()}, hints, scales.lost)


def _written_scales(w: SvdqWeights, layout: Layout, rows: Rows, kp: int, tensor_scale: bool, exact: Exact) -> Written:
    """The scales of both levels, without the linear's name. `kp` is K with padding."""
    packing = layout.packing
    if w.format is INT4:
        spread = _spread(w.wscale.T, rows, 1, 1, kp // STEP).T
        return Written({layout.scales: packing.scales.pack(spread)}, {})
    second = second_scales.write(w.wscale, w.wscale2, w.act_mul.dtype, tensor_scale, exact)
    one = int(torch.ones(1).to(E4M3).view(torch.int8))
    by_row = second.wscale.transpose(0, 1).flatten(1)  # [N, K/16]
    full = _spread(by_row, rows, one, one, kp // 16).unflatten(1, (kp // STEP, 4))
    out = {layout.scales: packing.micro.pack(full.transpose(0, 1)).view(E4M3)}
    if second.whole is not None:
        out["wtscale"] = second.whole
    if second.columns is not None:
        out["wcscales"] = packing.channels.pack(_spread(second.columns[:, None], rows, 1, 1, 1)[:, 0])
    return Written(out, second.exact, second.lost)


def _spread(values: Tensor, rows: Rows, row_fill: int, column_fill: int, columns: int) -> Tensor:
    """[N, C] -> [rows.total, columns] with `row_fill` in the padding rows, `column_fill` beyond C."""
    full = torch.full((rows.total, columns), row_fill, dtype=values.dtype)
    full[rows.at] = pad(values, (0, columns - values.shape[1]), value=column_fill)
    return full
