"""The op contract, version 1: the one place that says what an ``svdq::SVDQLinear*`` node is.

    y = act( Q(x̂)·Q(W)ᵀ + (x·lora_downᵀ)·lora_upᵀ + bias ),   x̂ = round_act_dtype((x + act_shift)·act_mul)

Op type = format and activation (``SVDQLinearInt4Geglu``). The C++ header plugins/include/svdq/contract.h is
written from this file by tools/gen_contract.py; a test compares the loaded plugin registry with it.

Every node has all eight inputs, always: no bias = zeros, R = 0 = empty [0, K] and [N, 0].
Weights are logical, row-major, unpadded. Standard library only.
"""

from __future__ import annotations

from dataclasses import dataclass

from svdq_trt.spec.formats import FORMATS, K_MULTIPLE, Activation, Format

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
    """One numeric attribute; `kind` is the ONNX attribute type."""

    name: str
    kind: str  # "int" or "float"
    default: float
    meaning: str


ATTRIBUTES: tuple[AttributeSpec, ...] = (
    AttributeSpec("group_size", "int", 64, "G of the weight scales"),
    AttributeSpec("act_unsigned", "int", 0, "1: u4 activation codes in 0..15 (int4 only)"),
    AttributeSpec("act_shift", "float", 0.0, "added to x before act_mul (int4 with act_unsigned)"),
)


@dataclass(frozen=True)
class OpSpec:
    """One op type."""

    op_type: str
    format: Format
    activation: Activation


def op_type(fmt: Format, activation: Activation = Activation.NONE) -> str:
    """Name of the node for a format and an activation."""
    return f"SVDQLinear{fmt.stem}{activation.value}"


OPS: dict[str, OpSpec] = {
    op_type(f, a): OpSpec(op_type(f, a), f, a) for f in FORMATS.values() for a in Activation
}


def input_shapes(fmt: Format, n: int, k: int, r: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the seven constant inputs of a node."""
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
