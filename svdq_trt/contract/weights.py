"""``SvdqWeights``: one quantized linear, its constants and how its activations become codes.

Names, order, shapes and dtypes are the op contract's (svdq_trt/contract/ops.py); what is cut, joined or checked here
follows from its table. Letters: N output features, K input features, R rank.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import pad

from svdq_trt.base.errors import ShapeError, UnsupportedError
from svdq_trt.contract import numerics
from svdq_trt.contract.formats import Activation, Dtype, Format
from svdq_trt.contract.ops import ATTRIBUTES, CONSTANTS, Size, TensorSpec


def torch_dtype(dtype: Dtype, act: torch.dtype) -> torch.dtype:
    """A resolved dtype (TensorSpec.dtype_of) in torch; `act` is that of x."""
    return {Dtype.ACT: act, Dtype.INT8: torch.int8, Dtype.F32: torch.float32}[dtype]


def tensors_of(node: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A node's constants among a model's tensors, where they are ``<node>.<name>``; those that are there."""
    names = {spec.name: f"{node}.{spec.name}" for spec in CONSTANTS}
    return {own: tensors[name] for own, name in names.items() if name in tensors}


class Misfit(NamedTuple):
    """A tensor that is not what the contract says: its name, and its shape or dtype, or that it is missing."""

    name: str
    got: str
    want: str
    error: type[ShapeError] | type[UnsupportedError]


def find_misfit(
    tensors: Mapping[str, Tensor], fmt: Format, n: int, k: int, r: int, act: torch.dtype | None
) -> Misfit | None:
    """The first of a linear's constants that is missing or has another shape or dtype; the only check of these.

    Args:
        tensors: by the contract's names. n, k, r: N, K, R.
        act: dtype of x; None: any float is as good as another, as it is where values are converted before use.
    """
    for spec in CONSTANTS:
        tensor, shape, dtype = tensors.get(spec.name), spec.shape_of(fmt, n, k, r), spec.dtype_of(fmt)
        if tensor is None or tuple(tensor.shape) != shape:
            got = "missing" if tensor is None else str(tuple(tensor.shape))
            return Misfit(spec.name, got, str(shape), ShapeError)
        if act is None and dtype is not Dtype.INT8:
            fits, want = tensor.is_floating_point(), "floats"
        else:
            wanted = torch_dtype(dtype, act or torch.int8)
            fits, want = tensor.dtype == wanted, str(wanted)
        if not fits:
            return Misfit(spec.name, str(tensor.dtype), want, UnsupportedError)
    return None


@dataclass(frozen=True, eq=False)
class SvdqWeights:
    """One quantized linear: y = act( Q(x̂)·Q(W)ᵀ + (x·lora_downᵀ)·lora_upᵀ + bias ).

    Attributes:
        qweight ... wscale2: the op's constants, in its order.
        format: number format; fixes dtypes and group sizes.
        activation: applied inside the op; a gated one halves the output features.
        act_unsigned, act_shift: u4 activation codes after a shift (a format with unsigned_codes, behind GELU).
    """

    qweight: Tensor
    wscale: Tensor
    act_mul: Tensor
    lora_down: Tensor
    lora_up: Tensor
    bias: Tensor
    wscale2: Tensor
    format: Format
    activation: Activation = Activation.NONE
    act_unsigned: bool = False
    act_shift: float = 0.0

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The constants by name, in the contract's order."""
        return {spec.name: getattr(self, spec.name) for spec in CONSTANTS}

    @property
    def attributes(self) -> dict[str, int | float]:
        """The op's attributes of a linear by name, as numbers."""
        kinds = {a.name: int if a.kind == "int" else float for a in ATTRIBUTES if not a.of_op}
        return {name: kind(getattr(self, name)) for name, kind in kinds.items()}

    @property
    def n(self) -> int:
        """Rows of the weight; y has half as many features if the activation is gated."""
        return self.qweight.shape[0]

    @property
    def k(self) -> int:
        """Input features."""
        return 2 * self.qweight.shape[1]  # two codes per byte

    @property
    def rank(self) -> int:
        """R of the low-rank branch."""
        return self.lora_down.shape[0]

    @property
    def nbytes(self) -> int:
        """Of all constants."""
        return sum(t.nbytes for t in self.tensors.values())

    def check(self, where: str, act: torch.dtype | None = None) -> None:
        """Refuse tensors that do not fit each other. `act` is the dtype of x; None: any, and floats of any width.

        Raises:
            ShapeError: a tensor whose shape does not follow from N, K and R, by name.
            UnsupportedError: one of another dtype than the contract's, by name.
        """
        found = find_misfit(self.tensors, self.format, self.n, self.k, self.rank, act)
        if found is None:
            return
        if found.error is ShapeError:
            raise ShapeError(where, f"{found.name} {found.got}", found.want)
        raise UnsupportedError(f"{where}, {found.name}", found.got, found.want + (f" for x in {act}" if act else ""))

    # ---- values ------------------------------------------------------------------------------------------------

    def unpack(self) -> Tensor:
        """[N, K] f32: what codes and scales mean; multiplies x̂."""
        packed = numerics.PackedWeight(self.qweight, self.wscale, self.wscale2)
        return numerics.dequantize_weight(packed, self.format)

    def residual(self) -> Tensor:
        """[N, K] f32: what the codes multiply raw x with, smoothing undone."""
        return self.unpack() * self.act_mul.float()

    def dequantize(self) -> Tensor:
        """[N, K] f32: the weight that multiplies raw x, residual and low-rank part."""
        return self.residual() + self.lora_up.float() @ self.lora_down.float()

    # ---- parts, and several as one -----------------------------------------------------------------------------

    def rows(self, at: Tensor) -> SvdqWeights:
        """Some rows of the weight, in the order of `at`, in memory of their own."""
        return self._each(Size.N, lambda t, spec, axis: t.index_select(axis, at))

    def columns(self, start: int, stop: int) -> SvdqWeights:
        """The part that reads input features [start, stop), in memory of its own; the bias goes with feature 0."""

        def cut(t: Tensor, spec: TensorSpec, axis: int) -> Tensor:
            divisor = spec.dims[axis].divisor
            return t.narrow(axis, start // divisor, (stop - start) // divisor).clone(
                memory_format=torch.contiguous_format
            )

        part = self._each(Size.K, cut)
        return replace(part, bias=torch.zeros_like(part.bias)) if start else part

    def with_rank(self, rank: int) -> SvdqWeights:
        """Zeros in the low-rank branch up to `rank`, or only the first `rank` of it; other tensors are shared."""

        def resize(t: Tensor, spec: TensorSpec, axis: int) -> Tensor:
            return pad(t, (*(0, 0) * (t.ndim - 1 - axis), 0, rank - self.rank))

        return self._each(Size.R, resize, copy=False)

    def contiguous(self) -> SvdqWeights:
        """The same with every tensor contiguous, as kernels and files want them."""
        packed: dict[str, Any] = {name: tensor.contiguous() for name, tensor in self.tensors.items()}
        return replace(self, **packed)

    def _each(self, size: Size, change: Callable[[Tensor, TensorSpec, int], Tensor], copy: bool = True) -> SvdqWeights:
        """`change` of the tensors that have the dimension, given its position; the others as they are, or copied."""
        changed: dict[str, Any] = {}
        for spec in CONSTANTS:
            tensor, axis = getattr(self, spec.name), spec.axis(size)
            if axis is not None:
                changed[spec.name] = change(tensor, spec, axis)
            elif copy:
                changed[spec.name] = tensor.clone()
        return replace(self, **changed)

    @staticmethod
    def stack(parts: Sequence[SvdqWeights]) -> SvdqWeights:
        """Linears with the same act_mul as one, rows in this order; the low-rank branches stand side by side."""
        stacked: dict[str, Any] = {}
        for spec in CONSTANTS:
            tensors = [getattr(part, spec.name) for part in parts]
            axes = [axis for axis in (spec.axis(Size.N), spec.axis(Size.R)) if axis is not None]
            if len(axes) == 2:
                stacked[spec.name] = torch.block_diag(*tensors)
            else:
                stacked[spec.name] = torch.cat(tensors, axes[0]) if axes else tensors[0]
        return replace(parts[0], **stacked)

    def named(self, node: str) -> dict[str, Tensor]:
        """The constants as a model names them, ``<node>.<name>``; see tensors_of."""
        return {f"{node}.{name}": tensor for name, tensor in self.tensors.items()}
