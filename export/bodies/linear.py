"""Function bodies of the linears and of two in a row; see svdq_trt/contract/ops.py."""

from __future__ import annotations

import onnx_ir as ir

from svdq_export.bodies.acts import quantize_act
from svdq_export.bodies.build import Body
from svdq_export.bodies.weights import dequantize_weight
from svdq_trt.contract.formats import F16_MAX, Activation, Format
from svdq_trt.contract.ops import CONSTANTS, LinearSpec, OpSpec


def linears(b: Body, op: OpSpec, inputs: dict[str, ir.Value]) -> list[ir.Value]:
    """The output of `op`, alone in a list."""
    y = inputs["x"]
    for linear in op.linears:
        constants = {spec.name: inputs[linear.prefix + spec.name] for spec in CONSTANTS}
        y = _linear(b, op.format, linear, y, constants)
    return [y]


def _linear(b: Body, fmt: Format, linear: LinearSpec, x: ir.Value, constants: dict[str, ir.Value]) -> ir.Value:
    """act( Q(x̂)·Q(W)ᵀ + (x·lora_downᵀ)·lora_upᵀ + bias ), one rounding at the end."""
    act_mul, lora_down, lora_up, bias = (constants[name] for name in ("act_mul", "lora_down", "lora_up", "bias"))
    w = dequantize_weight(b, constants["qweight"], constants["wscale"], constants["wscale2"], fmt)
    xf = b.to_f32(x)
    shifted = b("Add", xf, b.attribute(linear.prefix + "act_shift", "float"))
    x_hat = b.to_f32(b("CastLike", b("Mul", shifted, b.to_f32(act_mul)), x))
    xq = quantize_act(b, x_hat, x, fmt, b.attribute(linear.prefix + "act_unsigned", "int"))
    t = b.to_f32(b("CastLike", _matmul_t(b, xf, b.to_f32(lora_down)), x))  # rounded once, as the kernels do
    low_rank = _matmul_t(b, t, b.to_f32(lora_up))
    y = b("Add", b("Add", _matmul_t(b, xq, w), low_rank), b.to_f32(bias))
    y = _clamp_to_f16(b, _activate(b, y, linear.activation), x)
    # 0 for a finite row, NaN for one with NaN or Inf. x̂ has one wherever x has, and where the product
    # overflows the act dtype; 16-bit activations pass that on by themselves.
    mark = b("ReduceSum", b("Mul", xf if fmt.act_group is None else x_hat, 0.0), b.ints(-1), keepdims=1)
    return b("CastLike", b("Add", y, mark), x)


def _matmul_t(b: Body, x: ir.Value, w: ir.Value) -> ir.Value:
    """[..., K] · [N, K]ᵀ in f32."""
    return b("MatMul", x, b("Transpose", w, perm=[1, 0]))


def _activate(b: Body, y: ir.Value, activation: Activation) -> ir.Value:
    if activation.gated:
        value, gate = b.split(y, 2)
        return b("Mul", value, _activate(b, gate, activation.function))
    if activation is Activation.GELU:
        return b("Gelu", y, approximate="none")
    if activation is Activation.GELU_TANH:
        return b("Gelu", y, approximate="tanh")
    if activation is Activation.SILU:
        return b("Mul", y, b("Sigmoid", y))
    return y


def _clamp_to_f16(b: Body, y: ir.Value, like: ir.Value) -> ir.Value:
    """Clamp to ±65504 when `like` is f16, and only then; NaN passes.

    A body cannot ask for a dtype, but 2^-40 survives a cast to bf16 and f32 and becomes 0 in f16.
    """
    is_f16 = b("Equal", b.to_f32(b("CastLike", 2.0**-40, like)), 0.0)
    over = b("And", b("Greater", y, F16_MAX), is_f16)
    under = b("And", b("Less", y, -F16_MAX), is_f16)
    return b("Where", over, F16_MAX, b("Where", under, -F16_MAX, y))
