"""The op contract, version 1: the one place that says what an ``svdq::SVDQLinear*`` or ``svdq::SVDQMlp*`` node is.

    y = act( Q(x̂)·Q(W)ᵀ + (x·lora_downᵀ)·lora_upᵀ + bias ),   x̂ = round_act_dtype((x + act_shift)·act_mul)

``SVDQLinear`` is that; ``SVDQMlp`` is two in a row, fc1 with an activation and fc2 without: fc2's x is fc1's y, in x's
dtype. Nobody else reads fc1's y, so kernels may quantize it where it is computed; the values are those of two nodes.

Op type = kind, format and activation (``SVDQLinearInt4Geglu``, ``SVDQMlpInt4Geglu``). The C++ header
plugins/include/svdq/contract.h is written from this file by tools/gen_contract.py; a test compares the loaded plugin
registry with it.

Every node has all its inputs, always: no bias = zeros, R = 0 = empty [0, K] and [N, 0].
Weights are logical, row-major, unpadded. Standard library only.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from svdq_trt.contract.formats import FORMATS, INT4, K_MULTIPLE, NVFP4, Activation, Dtype, Format

DOMAIN = "svdq"
PLUGIN_VERSION = "1"
PLUGIN_NAMESPACE = "svdq"


class Size(enum.Enum):
    """What a dimension of an input counts. The value is its letter."""

    LEADING = "..."  # of x: any dimensions before K
    N = "N"
    K = "K"
    R = "R"
    COLS = "C"  # Format.wscale_cols: a dimension that is not there where it is 1


@dataclass(frozen=True)
class Dim:
    """One dimension of an input: a size of the linear over a constant."""

    size: Size
    divisor: int = 1


@dataclass(frozen=True)
class TensorSpec:
    """One input: its name, dimensions, dtype and meaning."""

    name: str
    dims: tuple[Dim, ...]
    dtype: Dtype
    meaning: str

    def dims_of(self, fmt: Format) -> tuple[Dim, ...]:
        """Those that there are in a format."""
        return tuple(d for d in self.dims if d.size is not Size.COLS or fmt.wscale_cols > 1)

    def shape_of(self, fmt: Format, n: int, k: int, r: int) -> tuple[int, ...]:
        """Shape of a constant input; x has leading dimensions, which are not the linear's."""
        sizes = {Size.N: n, Size.K: k, Size.R: r, Size.COLS: fmt.wscale_cols}
        return tuple(sizes[d.size] // d.divisor for d in self.dims_of(fmt))

    def axis(self, size: Size) -> int | None:
        """Which of its dimensions counts `size`."""
        return next((i for i, dim in enumerate(self.dims) if dim.size is size), None)

    def dtype_of(self, fmt: Format) -> Dtype:
        """ACT, INT8 or F32: what it is stored as in a format."""
        return fmt.wscale_dtype if self.dtype is Dtype.WSCALE else self.dtype

    @property
    def shape(self) -> str:
        """In the project's letters, by format where they differ: ``[K/64, N] or [K/64, N, 4]``."""
        return " or ".join(dict.fromkeys(self._shape_text(fmt) for fmt in FORMATS.values()))

    def _shape_text(self, fmt: Format) -> str:
        letters = {size: size.value for size in Size} | {Size.COLS: str(fmt.wscale_cols)}
        parts = (letters[d.size] + (f"/{d.divisor}" if d.divisor > 1 else "") for d in self.dims_of(fmt))
        return f"[{', '.join(parts)}]"


_N, _K, _R = Dim(Size.N), Dim(Size.K), Dim(Size.R)

#: of one linear: x, then its constants
INPUTS: tuple[TensorSpec, ...] = (
    TensorSpec("x", (Dim(Size.LEADING), _K), Dtype.ACT, "raw activation"),
    TensorSpec("qweight", (_N, Dim(Size.K, 2)), Dtype.INT8, "two 4-bit codes per byte, low nibble = even k"),
    TensorSpec("wscale", (Dim(Size.K, 64), _N, Dim(Size.COLS)), Dtype.WSCALE, "group scales, group-major"),
    TensorSpec("act_mul", (_K,), Dtype.ACT, "x̂ = x · act_mul"),
    TensorSpec("lora_down", (_R, _K), Dtype.ACT, "reads raw x"),
    TensorSpec("lora_up", (_N, _R), Dtype.ACT, "low-rank up"),
    TensorSpec("bias", (_N,), Dtype.ACT, "zeros when the linear has none"),
    TensorSpec("wscale2", (_N,), Dtype.F32, "second-level weight scale; ones for int4 and w4a16"),
)
CONSTANTS = INPUTS[1:]


@dataclass(frozen=True)
class AttributeSpec:
    """One numeric attribute; `kind` is the ONNX attribute type. `of_op`: one for all linears of an op."""

    name: str
    kind: str  # "int" or "float"
    default: float
    meaning: str
    of_op: bool = False


#: of one linear
ATTRIBUTES: tuple[AttributeSpec, ...] = (
    AttributeSpec("group_size", "int", 64, "G of the weight scales", of_op=True),
    AttributeSpec("act_unsigned", "int", 0, "1: u4 activation codes in 0..15 (int4 only)"),
    AttributeSpec("act_shift", "float", 0.0, "added to x before act_mul (int4 with act_unsigned)"),
)


@dataclass(frozen=True)
class LinearSpec:
    """One linear of an op: what it applies after the bias, and how its inputs' and attributes' names begin."""

    activation: Activation
    prefix: str = ""


@dataclass(frozen=True)
class OpSpec:
    """One op type: linears in a row, the first reads x and each other one what stands before it gives."""

    op_type: str
    format: Format
    linears: tuple[LinearSpec, ...]

    @property
    def activation(self) -> Activation:
        """The one in the op type's name, that of the first linear."""
        return self.linears[0].activation

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """x, then each linear's constants."""
        constants = (replace(t, name=linear.prefix + t.name) for linear in self.linears for t in CONSTANTS)
        return (INPUTS[0], *constants)

    @property
    def attributes(self) -> tuple[AttributeSpec, ...]:
        """Those of the whole op, then each linear's."""
        own = [a for a in ATTRIBUTES if not a.of_op]
        return (
            *(a for a in ATTRIBUTES if a.of_op),
            *(replace(a, name=linear.prefix + a.name) for linear in self.linears for a in own),
        )


def op_type(fmt: Format, activation: Activation = Activation.NONE) -> str:
    """Name of the node of one linear."""
    return f"SVDQLinear{fmt.stem}{activation.value}"


def mlp_op_type(fmt: Format, activation: Activation) -> str:
    """Name of the node of two linears with `activation` between them; in OPS where there is such an op."""
    return f"SVDQMlp{fmt.stem}{activation.value}"


LINEAR_OPS: dict[str, OpSpec] = {
    op_type(f, a): OpSpec(op_type(f, a), f, (LinearSpec(a),)) for f in FORMATS.values() for a in Activation
}
MLP_OPS: dict[str, OpSpec] = {
    mlp_op_type(f, a): OpSpec(mlp_op_type(f, a), f, (LinearSpec(a, "fc1_"), LinearSpec(Activation.NONE, "fc2_")))
    for f in (INT4, NVFP4)  # the hidden activation's scales are per group: an epilogue sees all of one
    for a in (Activation.GELU, Activation.GELU_TANH, Activation.GEGLU, Activation.SWIGLU)
}
OPS: dict[str, OpSpec] = LINEAR_OPS | MLP_OPS


def mlp_name(fc1: str, fc2: str) -> str:
    """Name of an SVDQMlp node: those of the two nodes that it stands for."""
    return f"{fc1}+{fc2}"


def linear_names(node: str) -> list[str]:
    """Names of the linears in a node, by its name."""
    return node.split("+")


def input_shapes(fmt: Format, n: int, k: int, r: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the constants of one linear, by name."""
    return {spec.name: spec.shape_of(fmt, n, k, r) for spec in CONSTANTS}


def max_exact_k(fmt: Format) -> int:
    """Largest K: the int32 sum of K products of 127·127 stays exact for w4a8; others are limited by int32 sizes."""
    return (2**31 - 1) // (127 * 127) // K_MULTIPLE * K_MULTIPLE if fmt.name == "w4a8" else 2**31 - 64
