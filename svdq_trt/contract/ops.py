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

from dataclasses import dataclass, replace

from svdq_trt.contract.formats import FORMATS, INT4, K_MULTIPLE, NVFP4, Activation, Format

DOMAIN = "svdq"
PLUGIN_VERSION = "1"
PLUGIN_NAMESPACE = "svdq"


@dataclass(frozen=True)
class TensorSpec:
    """One input: its name, shape in the project's letters, dtype and meaning."""

    name: str
    shape: str
    dtype: str  # "act" = dtype of x (f16 or bf16); "wscale" = act or int8, by format
    meaning: str


#: of one linear: x, then its constants
INPUTS: tuple[TensorSpec, ...] = (
    TensorSpec("x", "[..., K]", "act", "raw activation"),
    TensorSpec("qweight", "[N, K/2]", "int8", "two 4-bit codes per byte, low nibble = even k"),
    TensorSpec("wscale", "[K/64, N] or [K/64, N, 4]", "wscale", "group scales, group-major"),
    TensorSpec("act_mul", "[K]", "act", "x̂ = x · act_mul"),
    TensorSpec("lora_down", "[R, K]", "act", "reads raw x"),
    TensorSpec("lora_up", "[N, R]", "act", "low-rank up"),
    TensorSpec("bias", "[N]", "act", "zeros when the linear has none"),
    TensorSpec("wscale2", "[N]", "float32", "second-level weight scale; ones for int4 and w4a16"),
)


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
        x, *constants = INPUTS
        return (x, *(replace(t, name=linear.prefix + t.name) for linear in self.linears for t in constants))

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
    for a in (Activation.GELU, Activation.GELU_TANH, Activation.GEGLU)
}
OPS: dict[str, OpSpec] = LINEAR_OPS | MLP_OPS


def mlp_name(fc1: str, fc2: str) -> str:
    """Name of an SVDQMlp node: those of the two nodes that it stands for."""
    return f"{fc1}+{fc2}"


def linear_names(node: str) -> list[str]:
    """Names of the linears in a node, by its name."""
    return node.split("+")


def input_shapes(fmt: Format, n: int, k: int, r: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the seven constants of one linear."""
    return {
        "qweight": (n, k // 2),
        "wscale": fmt.wscale_shape(n, k),
        "act_mul": (k,),
        "lora_down": (r, k),
        "lora_up": (n, r),
        "bias": (n,),
        "wscale2": (n,),
    }


def max_exact_k(fmt: Format) -> int:
    """Largest K: the int32 sum of K products of 127·127 stays exact for w4a8; others are limited by int32 sizes."""
    return (2**31 - 1) // (127 * 127) // K_MULTIPLE * K_MULTIPLE if fmt.name == "w4a8" else 2**31 - 64
